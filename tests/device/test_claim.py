"""A device that becomes one by a claim, over a real broker and an emulator of IoT Core's provisioning."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleetfold import bundle
from fleetfold.adapters.provisioning import Made, Provisioning
from fleetfold.bundle import Bundle, Claim
from fleetfold.device import claim as claims
from fleetfold.device.claim import become, lets_in
from fleetfold.device.commands import main
from fleetfold.device.terms import Home
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.wiring import device as wiring
from tests.device.provisioner import Core
from tests.hub.wire import QUICK


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    made = Core(tmp_path_factory.mktemp("iot") / "core")
    yield made
    made.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "home").mkdir()
    return Home(tmp_path / "home")


class Short:
    """The way to provisioning, with a patience that tests can bear."""

    def __init__(self, claim: Claim) -> None:
        self._way = Provisioning(claim, pauses=QUICK)
        self.close = self._way.close

    def create(self, csr: str, ours: Callable[[str], bool]) -> Made:
        return self._way.create(csr, ours, 3.0)

    def register(self, token: str, device: str) -> None:
        self._way.register(token, device, 3.0)


def let_in(given: Bundle, seconds: float) -> bool:
    return lets_in(wiring.link)(given, 5.0)


def nobody(given: Bundle, seconds: float) -> bool:
    return False


def test_whoever_has_a_claim_becomes_a_device_of_its_own_name_and_key(core: Core, home: Home) -> None:
    made = become(home, core.claim(), "press-1", Short, let_in)
    assert (made.fleet, made.device, made.door) == ("main", "press-1", "")
    assert core.things["press-1"] == made.certificate
    assert made.key not in ("", core.claim().key)
    assert bundle.load(home.bundle) == made
    assert not (home.path / "claim").exists()
    assert let_in(made, 5.0)
    asked = len(core.asked)
    assert become(home, core.claim(), "press-1", Short, let_in) == made
    assert len(core.asked) == asked, "who is one already asks for nothing"


def test_a_name_that_is_taken_is_nobody_elses(core: Core, home: Home, tmp_path: Path) -> None:
    become(home, core.claim(), "press-2", Short, let_in)
    other = Home(tmp_path / "other")
    other.path.mkdir()
    with pytest.raises(BadConfig, match="does not make another") as told:
        become(other, core.claim(), "press-2", Short, nobody)
    assert "ANOTHER_NAME" in told.value.next
    assert not other.bundle.exists()


@pytest.mark.parametrize("lost", ["create", "register"])
def test_an_answer_that_is_lost_leaves_one_device_and_one_that_counts(
    core: Core, home: Home, lost: str
) -> None:
    core.lose.add(lost)
    made = become(home, core.claim(), f"press-{lost}", Short, let_in)
    assert core.things[made.device] == made.certificate


@pytest.mark.parametrize("step", ["create", "register", "bundle"])
def test_a_device_that_dies_while_it_becomes_one_goes_on_from_there(
    core: Core, home: Home, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(Exception):
        pass

    class Mortal(Short):
        def create(self, csr: str, ours: Callable[[str], bool]) -> Made:
            made = super().create(csr, ours)
            if step == "create":
                raise Dies
            return made

        def register(self, token: str, device: str) -> None:
            super().register(token, device)
            if step == "register":
                raise Dies

    def die(*_: object) -> None:
        raise Dies

    name = f"press-dies-{step}"
    with monkeypatch.context() as patch:
        if step == "bundle":
            patch.setattr(claims.terms, "take_in", die)
        with pytest.raises(Dies):
            become(home, core.claim(), name, Mortal, let_in)
    made = become(home, core.claim(), name, Short, let_in if step != "create" else nobody)
    assert core.things[name] == made.certificate
    assert bundle.load(home.bundle) == made


def test_without_an_answer_it_is_said_and_nothing_is_lost(core: Core, home: Home) -> None:
    core.lose.update({"create"})

    class Once(Short):
        def create(self, csr: str, ours: Callable[[str], bool]) -> Made:
            core.lose.add("create")
            return self._way.create(csr, ours, 0.2)

    with pytest.raises(Unavailable, match="no answer"):
        become(home, core.claim(), "press-3", Once, let_in)
    core.lose.clear()
    assert become(home, core.claim(), "press-3", Short, let_in)


def test_a_claim_is_no_bundle_and_a_bundle_is_no_claim(
    core: Core, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "claim.bundle"
    claim, given = core.claim(), ["--home", str(tmp_path / "home")]
    bundle.save(claim, place)
    assert bundle.opened(place) == claim
    with pytest.raises(SystemExit) as left:
        main(["join", str(place), *given])
    assert left.value.code == 2
    assert "--device NAME" in capsys.readouterr().err
    bundle.save(
        Bundle(fleet="main", device="a", brokers=(), authority="", certificate=""), tmp_path / "a.bundle"
    )
    with pytest.raises(SystemExit):
        main(["join", str(tmp_path / "a.bundle"), "--device", "b", *given])
    assert "is the bundle of a" in capsys.readouterr().err
