"""A device's life, with real processes: tasks come and go, processes die, nothing is lost or done twice."""

import os
import signal
from pathlib import Path

import pytest

from fleetfold.fold.tensors import read
from tests.device.agent import Agent, fleetfold, until


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_a_task_is_accepted_done_and_reported_and_the_process_that_waits_has_loaded_nothing(
    agent: Agent,
) -> None:
    task = agent.hub.invite(agent.hub.task())
    agent.join("--keep-warm", "0")
    agent.settled()
    assert agent.hub.states() == [(1, "accepted"), (1, "delivered")]
    assert set(read(agent.hub.update(task))[0]) == {"w"}
    assert agent.process is not None
    maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert "numpy" not in maps
    agent.until(lambda: gone(agent.hub.trainer()))  # what trained is gone too
    assert agent.leave() == 0
    said = [presence.online for presence in agent.hub.presences() if presence.available]
    assert said == [True, False]


def test_the_next_task_finds_the_app_loaded(agent: Agent) -> None:
    agent.join()
    trainers = []
    for round in (1, 2):
        agent.hub.invite(agent.hub.task(round))
        agent.settled(round)
        trainers.append(agent.hub.trainer())
    assert trainers[0] == trainers[1]


def test_a_task_that_is_taken_back_is_left_off_at_once_with_all_that_it_started(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task(settings={"hold": True}))
    agent.join()
    agent.until(agent.hub.trained)
    agent.hub.withdraw()
    agent.until(lambda: gone(agent.hub.trainer()))
    agent.hub.invite(agent.hub.task(2))
    agent.until(lambda: (2, "delivered") in agent.hub.states())
    assert (1, "delivered") not in agent.hub.states()


def test_a_newer_task_replaces_the_one_in_hand(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task(settings={"hold": True}))
    agent.join()
    agent.until(agent.hub.trained)
    agent.hub.invite(agent.hub.task(2))
    agent.until(lambda: (2, "delivered") in agent.hub.states())
    assert (1, "refused") in agent.hub.states()


def test_what_was_begun_is_finished_after_a_restart_and_the_restart_is_not_held_against_it(
    agent: Agent,
) -> None:
    agent.hub.invite(agent.hub.task(settings={"hold": True}))
    for times in range(1, 5):
        agent.join()
        agent.until(lambda times=times: len(agent.hub.trained()) == times)
        assert agent.leave() == 0
        assert gone(agent.hub.trainer())
    agent.hub.mark("offline")
    agent.hub.mark("go")
    agent.join()  # trains without a link
    agent.settled()
    assert (1, "delivered") in agent.hub.states()


def test_what_was_answered_is_told_again_after_a_restart_and_when_the_broker_has_forgotten(
    agent: Agent,
) -> None:
    agent.hub.invite(agent.hub.task())
    agent.join()
    agent.settled()
    agent.hub.mark("forgotten")
    agent.hub.command(what="cancel")  # so that it looks
    agent.settled(2)
    agent.kill()
    agent.join()
    agent.settled(3)
    assert agent.hub.states().count((1, "delivered")) >= 3
    assert agent.hub.trained() == [1]


def test_without_objects_it_waits_and_goes_on_when_they_are_there(agent: Agent) -> None:
    agent.hub.mark("shut")
    agent.hub.invite(agent.hub.task())
    agent.join()
    agent.until(lambda: "the door is shut" in agent.log())
    agent.hub.mark("shut", there=False)
    agent.settled()
    assert agent.hub.states()[-1] == (1, "delivered")


def test_without_a_link_the_screen_says_since_when_and_why(agent: Agent) -> None:
    agent.hub.mark("offline")
    agent.join()
    agent.until(lambda: "not connected" in agent.log())
    assert "(the cable is out)" in agent.log()
    agent.until(lambda: ": the cable is out" in fleetfold("agent", "status").stdout)
    agent.hub.mark("offline", there=False)
    agent.until(lambda: "connected to mqtts://simulated:8883" in fleetfold("agent", "status").stdout)


def test_an_update_that_cannot_be_delivered_is_not_trained_again(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task(settings={"hold": True}))
    agent.join()
    agent.until(agent.hub.trained)
    agent.hub.mark("shut")
    agent.hub.mark("go")
    agent.until(lambda: list((agent.home / "spool").glob("*.safetensors")))
    agent.kill()
    agent.join()
    agent.until(lambda: agent.log().count("the door is shut") >= 2)
    agent.hub.mark("shut", there=False)
    agent.settled()
    assert agent.hub.trained() == [1]


@pytest.mark.fleet
@pytest.mark.parametrize("process", ["worker", "agent"])
def test_killed_at_each_of_its_writes_it_ends_with_the_same_update_told_and_trained_once_if_finished(
    process: str, agent: Agent
) -> None:
    expected = agent.hub.invite(agent.hub.task(1, seed=7))
    agent.join()
    agent.settled()
    agent.leave()
    whole = read(agent.hub.update(expected))[0]["w"].tobytes()
    for at in range(1, 40):
        before = len(agent.hub.trained())
        task = agent.hub.invite(agent.hub.task(at + 1, seed=7))
        agent.join(faults=f"{process}:{at}")
        survived = True
        if process == "agent":
            assert agent.process is not None

            def over(round: int = at + 1) -> bool:
                assert agent.process is not None
                told = (round, "delivered") in agent.hub.states()
                return told or agent.process.poll() is not None

            until(over, agent.log)
            survived = agent.process.poll() is None
            if not survived:
                assert agent.process.returncode == -signal.SIGKILL
                agent.join()
        agent.until(lambda round=at + 1: (round, "delivered") in agent.hub.states())
        assert {s for r, s in agent.hub.states() if r == at + 1} == {"accepted", "delivered"}
        assert read(agent.hub.update(task))[0]["w"].tobytes() == whole
        assert len(agent.hub.trained()) - before <= 2
        lived = survived if process == "agent" else agent.log().rpartition("joins")[2].count("died") == 0
        agent.leave()
        if lived:
            assert at > 5
            return
    pytest.fail("it makes fewer writes than that")


def test_a_task_that_kills_its_process_again_and_again_is_given_up_with_the_reason(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task(settings={"die": int(signal.SIGSEGV)}))
    agent.join()
    agent.settled()
    last = agent.hub.reports()[-1]
    assert (last.state, len(agent.hub.trained())) == ("failed", 3)
    assert "3 times" in last.reason
    assert "SIGSEGV" in last.reason


def test_when_the_waiting_process_is_killed_its_worker_dies_with_it(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task(settings={"hold": True}))
    agent.join()
    agent.until(agent.hub.trained)
    agent.kill()
    until(lambda: gone(agent.hub.trainer()))


def test_memory_that_is_not_there_is_a_refusal(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task(settings={"eat": 2_000_000_000}))
    agent.join("--memory", "400MB", "--threads", "1")
    agent.settled()
    last = agent.hub.reports()[-1]
    assert (last.state, last.reason) == ("refused", "not enough memory")


def test_memory_of_processes_that_training_has_started_counts_too(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task(settings={"fork": 300_000_000}))
    agent.join("--memory", "320MB", "--threads", "1")
    agent.settled()
    last = agent.hub.reports()[-1]
    assert last.state == "refused"
    assert "the limit is 320.0 MB" in last.reason
    until(lambda: gone(agent.hub.trainer()))


@pytest.mark.parametrize(
    ("flags", "changes", "reason"),
    [
        (["--memory", "300MB"], {"size": 100_000_000}, "not enough memory: the task needs about 464.0 MB"),
        (["--daily-bytes", "1MB"], {"most": 2_000_000}, "the day's budget of 1.0 MB: 1.0 MB left"),
        ([], {"form": {"codec": "zip"}}, "codec 'zip' is not one of full"),
    ],
)
def test_a_task_that_cannot_be_done_here_is_refused_before_it_is_begun(
    flags: list[str], changes: dict[str, object], reason: str, agent: Agent
) -> None:
    from fleetfold.messages import Form

    if "form" in changes:
        changes = {"form": Form(codec="zip")}
    agent.hub.invite(agent.hub.task(**changes))
    agent.join(*flags)
    agent.settled()
    assert agent.hub.states() == [(1, "refused")]
    assert reason in agent.hub.reports()[0].reason
    assert agent.hub.trained() == []


def test_work_waits_for_conditions_says_why_and_begins_when_they_hold(agent: Agent, tmp_path: Path) -> None:
    plugged = tmp_path / "plugged"
    agent.hub.invite(agent.hub.task())
    agent.join("--condition", f"plugged=test -e {plugged} || {{ echo the cable hangs loose; exit 1; }}")
    agent.until(lambda: (1, "progress") in agent.hub.states())
    assert agent.hub.reports()[0].reason == "waiting: plugged is required, the cable hangs loose"
    assert not agent.hub.presences()[0].available
    agent.until(lambda: agent.hub.reports()[0].reason in fleetfold("agent", "status").stdout)
    assert agent.hub.trained() == []
    plugged.touch()
    agent.settled()
    assert agent.hub.states() == [(1, "progress"), (1, "accepted"), (1, "delivered")]


def test_a_task_that_waits_is_dropped_when_it_is_taken_back(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task())
    agent.join("--condition", "never=false")
    agent.until(lambda: (1, "progress") in agent.hub.states())
    agent.hub.withdraw()
    agent.until(lambda: "taken back" in agent.log())
    agent.until(lambda: "nothing: there is no task" in fleetfold("agent", "status").stdout)
    assert agent.hub.trained() == []


def test_a_clock_that_is_a_year_off_changes_nothing(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
    monkeypatch.setenv("FAKETIME", "+400d")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    agent.hub.invite(agent.hub.task())
    agent.join()
    agent.settled()
    monkeypatch.setenv("FAKETIME", "-400d")
    agent.leave()
    agent.hub.invite(agent.hub.task(2))
    agent.join()
    agent.until(lambda: (2, "delivered") in agent.hub.states())
    assert agent.hub.trained() == [1, 2]


def test_commands_are_done_and_answered(agent: Agent) -> None:
    hub = agent.hub
    agent.join()
    hub.command(what="get", upload="got/nothing")
    agent.until(lambda: len(hub.answers()) == 1)
    assert hub.answers()[0].reason == "this device keeps no model yet"
    key, digest, size = hub.model(2.0)
    hub.command(what="set", model=key, digest=digest, size=size)
    hub.command(what="evaluate", settings={"of": 3})
    hub.command(what="get", upload="got/model")
    agent.until(lambda: len(hub.answers()) == 4)
    put, scored, got = hub.answers()[1:]
    assert (put.state, put.digest, put.size) == ("done", digest, size)
    assert (scored.examples, scored.metrics) == (5, {"mean": 2.0, "of": 3.0})
    assert (got.state, got.digest) == ("done", digest)
    assert (agent.home / "model.safetensors").stat().st_size == size
    key, other, size = hub.model(5.0)
    hub.command(what="set", model=key, digest="0" * 64, size=size)
    hub.command(what="evaluate", model=key, digest=other, size=size)
    agent.until(lambda: len(hub.answers()) == 6)
    assert [answer.state for answer in hub.answers()[4:]] == ["failed", "done"]
    assert hub.answers()[5].metrics["mean"] == 5.0


def test_a_command_is_done_once_and_answered_as_often_as_it_comes(agent: Agent) -> None:
    agent.join()
    for _ in range(2):
        agent.hub.command(id="same", what="evaluate")
        agent.until(agent.hub.answers)
    agent.until(lambda: len(agent.hub.answers()) == 2)
    assert agent.hub.answers()[0] == agent.hub.answers()[1]


def test_cancel_leaves_off_the_task_and_the_hub_is_told(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task(settings={"hold": True}))
    agent.join()
    agent.until(agent.hub.trained)
    agent.hub.command(what="cancel", run="another")
    agent.hub.command(what="cancel", run="r")
    agent.hub.command(what="cancel")
    agent.until(lambda: len(agent.hub.answers()) == 3)
    assert [answer.state for answer in agent.hub.answers()] == ["refused", "done", "refused"]
    assert agent.hub.reports()[-1].reason == "cancelled by the hub's command"
    until(lambda: gone(agent.hub.trainer()))


def test_a_command_does_not_wait_for_conditions_nor_for_a_task_that_does(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task())
    agent.join("--condition", "never=false")
    key, digest, size = agent.hub.model(1.0)
    agent.hub.command(what="evaluate", model=key, digest=digest, size=size)
    agent.until(agent.hub.answers)
    assert agent.hub.answers()[0].state == "done"


def test_bytes_of_the_day_are_counted_and_outlive_the_process(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task())
    agent.join("--daily-bytes", "10kB")
    agent.settled()
    agent.kill()
    agent.join()
    agent.until(lambda: "of 10.0 kB" in fleetfold("agent", "status").stdout)
    agent.hub.invite(agent.hub.task(2, most=9_900, digest="0" * 64))
    agent.until(lambda: (2, "refused") in agent.hub.states())
    assert "left, the task needs" in agent.hub.reports()[-1].reason


def test_its_priority_is_what_was_asked_for(agent: Agent) -> None:
    agent.hub.invite(agent.hub.task(settings={"hold": True}))
    agent.join("--nice", "7", "--idle-io")
    agent.until(agent.hub.trained)
    assert os.getpriority(os.PRIO_PROCESS, agent.hub.trainer()) == 7
    assert agent.process is not None
    assert os.getpriority(os.PRIO_PROCESS, agent.process.pid) == 0
