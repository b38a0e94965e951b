"""What every adapter of the bus keeps: the coordinator's end and the devices' end."""

from fleetfold.messages import Report, Task
from fleetfold.ports import Control, Link


def task(device: str, round: int) -> Task:
    return Task(
        run="r", round=round, kind="train", device=device, model="m", digest="", update="u", seed=1,
        deadline=4e9, settings={"epochs": 3},
    )  # fmt: skip


def report(device: str, round: int = 1) -> Report:
    return Report(run="r", round=round, kind="train", device=device, state="delivered")


class BusContract:
    """Subclass it with fixtures `control`, and `links`: a function from devices to a new link."""

    def test_a_task_reaches_its_device_and_no_other(self, control: Control, links) -> None:  # type: ignore[no-untyped-def]
        a, b = links(["a"]), links(["b", "c"])
        control.invite([task("a", 1), task("b", 1)])
        assert list(a.tasks()) == [task("a", 1)]
        assert list(b.tasks()) == [task("b", 1)]

    def test_a_task_is_handed_over_once_to_each_life_of_a_device(self, control: Control, links) -> None:  # type: ignore[no-untyped-def]
        link: Link = links(["a"])
        control.invite([task("a", 1)])
        assert list(link.tasks()) == [task("a", 1)]
        assert list(link.tasks()) == []
        assert list(links(["a"]).tasks()) == [task("a", 1)], "retained: who was off finds it"

    def test_a_newer_task_replaces_the_older(self, control: Control, links) -> None:  # type: ignore[no-untyped-def]
        control.invite([task("a", 1)])
        control.invite([task("a", 2)])
        assert list(links(["a"]).tasks()) == [task("a", 2)]

    def test_a_withdrawn_task_is_handed_over_no_more(self, control: Control, links) -> None:  # type: ignore[no-untyped-def]
        link: Link = links(["a", "b"])
        control.invite([task("a", 1), task("b", 1)])
        control.withdraw(["a", "nobody"])
        control.withdraw([])
        assert list(link.tasks()) == [task("b", 1)]
        control.invite([task("a", 2)])
        assert list(link.tasks()) == [task("a", 2)]

    def test_a_report_comes_until_it_is_acknowledged(self, control: Control, links) -> None:  # type: ignore[no-untyped-def]
        links(["a"]).report(report("a"))
        links(["b"]).report(report("b"))
        letters = control.letters()
        assert {letter.report.device for letter in letters} == {"a", "b"}
        assert [x.receipt for x in control.letters()] == [x.receipt for x in letters]
        control.acknowledge([x.receipt for x in letters if x.report.device == "a"])
        assert [x.report for x in control.letters()] == [report("b")]
        control.acknowledge([x.receipt for x in letters])
        control.acknowledge([])
        assert list(control.letters()) == []
