"""Who belongs to the fleet: one credential counts for each device, whatever dies, and the command line."""

import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fleetfold import bundle
from fleetfold.adapters.faults import Died, Faults, simulated_death
from fleetfold.adapters.memory import MemoryRecords
from fleetfold.cli.main import main
from fleetfold.errors import BadConfig
from fleetfold.hub import authority
from fleetfold.hub.enrol import credential, credentials, enroll, revoke
from fleetfold.ledger import Ledger
from fleetfold.messages import Presence
from fleetfold.round.fleet import Device


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "hub"
    authority.create(folder, authority.Site(fleet="clinic", hosts=("hub.example",)))
    return folder


@pytest.fixture
def records() -> MemoryRecords:
    return MemoryRecords()


def subject(certificate: str) -> str:
    return x509.load_pem_x509_certificate(certificate.encode()).subject.rfc4514_string()


def test_who_is_enrolled_has_a_bundle_a_credential_and_a_place_in_the_registry(
    folder: Path, records: MemoryRecords
) -> None:
    made = enroll(records, folder, "camera-7", now=5.0)
    known = credential(records, "camera-7")
    assert known
    assert (made.fleet, made.device, made.brokers) == ("clinic", "camera-7", ("mqtts://hub.example:8883",))
    assert made.authority == (folder / "ca.pem").read_text()
    assert subject(made.certificate) == f"2.5.4.5={known.id},CN=camera-7"
    key = load_pem_private_key(made.key.encode(), None)
    assert x509.load_pem_x509_certificate(made.certificate.encode()).public_key() == key.public_key()
    assert (known.issued_at, known.counts, known.void) == (5.0, True, ())
    assert Ledger(records).fleet() == [
        Device(name="camera-7", says=Presence(device="camera-7", online=False))
    ]


def test_what_the_registry_knows_of_a_device_stays_when_it_is_enrolled_anew(
    folder: Path, records: MemoryRecords
) -> None:
    enroll(records, folder, "a", now=1.0)
    Ledger(records).save_devices([Device(name="a", examples=7)])
    enroll(records, folder, "a", now=2.0)
    assert Ledger(records).fleet() == [Device(name="a", examples=7)]


def test_the_newest_credential_counts_and_all_before_it_never_again(
    folder: Path, records: MemoryRecords
) -> None:
    ids = []
    for now in (1.0, 2.0, 3.0):
        enroll(records, folder, "a", now=now)
        known = credential(records, "a")
        assert known
        ids.append(known.id)
    assert len(set(ids)) == 3
    assert (known.counts, known.void) == (True, tuple(ids[:2]))
    known = revoke(records, "a", now=4.0)
    assert (known.counts, known.void) == (False, tuple(ids))
    assert revoke(records, "a", now=9.0) == known, "once more changes nothing"
    enroll(records, folder, "a", now=5.0)
    [back] = credentials(records)
    assert (back.counts, back.void) == (True, tuple(ids))


@pytest.mark.parametrize("step", range(5))
def test_who_dies_enrolling_leaves_the_old_credential_or_a_new_one_and_can_do_it_again(
    folder: Path, records: MemoryRecords, step: int
) -> None:
    enroll(records, folder, "a", now=1.0)
    before = credential(records, "a")
    assert before
    try:
        enroll(Faults(step, simulated_death).wrap(records), folder, "a", now=2.0)
    except Died:
        left = credential(records, "a")
        assert left
        assert left == before or left.past == (before.id,)
    made = enroll(records, folder, "a", now=3.0)
    [known] = credentials(records)
    assert subject(made.certificate) == f"2.5.4.5={known.id},CN=a"
    assert before.id in known.past
    assert [device.name for device in Ledger(records).fleet()] == ["a"]


def test_of_many_who_enrol_a_device_at_once_one_credential_counts_and_the_others_are_known_to_be_void(
    folder: Path, records: MemoryRecords
) -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(enroll(records, folder, "a", now=1.0).certificate))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [known] = credentials(records)
    assert {subject(each) for each in made} == {f"2.5.4.5={id},CN=a" for id in (*known.past, known.id)}
    assert len(known.past) == 7


@pytest.mark.parametrize("name", ["hub", "", "a/b", "+", "#", "a\n", "..", "a" * 65, "ü"])
def test_no_device_has_the_hubs_name_or_one_that_is_none(
    folder: Path, records: MemoryRecords, name: str
) -> None:
    with pytest.raises(BadConfig):
        enroll(records, folder, name, now=1.0)
    assert (credentials(records), Ledger(records).fleet()) == ([], [])


def test_a_device_that_never_belonged_cannot_be_revoked(records: MemoryRecords) -> None:
    with pytest.raises(BadConfig, match="never enrolled"):
        revoke(records, "a", now=1.0)


def test_without_a_hub_the_command_that_makes_one_is_told(tmp_path: Path, records: MemoryRecords) -> None:
    with pytest.raises(BadConfig, match="fleetfold hub init"):
        enroll(records, tmp_path, "a", now=1.0)


# The command line


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETFOLD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


def test_a_hub_is_made_a_device_enrolled_and_revoked_from_the_command_line(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("enroll", "a") == 2
    assert "fleetfold hub init" in capsys.readouterr().err
    assert run("hub", "init", "--host", "hub.example", "--host", "10.0.0.1", "--websockets", "443") == 0
    assert "wss://10.0.0.1:443/mqtt" in capsys.readouterr().out
    assert run("hub", "init") == 2
    assert "already" in capsys.readouterr().err
    assert run("enroll", "a", "b") == 0
    assert "fleetfold join a.bundle" in capsys.readouterr().out
    assert stat.S_IMODE((home / "a.bundle").stat().st_mode) == 0o600
    assert bundle.load(home / "b.bundle").device == "b"
    assert run("revoke", "b") == 0
    assert "b: revoked" in capsys.readouterr().out
    assert run("revoke", "c") == 2
    assert run("enroll", "a", "b", "--out", "x") == 2
    assert run("enroll", "a/b") == 2
    assert run("enroll", "c", "--out", "nowhere/x") == 2


def test_a_device_that_keeps_its_key_gets_a_certificate_for_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=device "
        "-keyout device.key -out device.csr"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    assert run("hub", "init") == 0
    assert run("enroll", "a", "--csr", "device.csr", "--out", "for-a") == 0
    made = bundle.load(home / "for-a")
    key = load_pem_private_key((home / "device.key").read_bytes(), None)
    assert (made.device, made.key) == ("a", "")
    assert x509.load_pem_x509_certificate(made.certificate.encode()).public_key() == key.public_key()
    assert run("enroll", "a", "--csr", "device.key") == 2
    assert command in capsys.readouterr().err.replace("\n", " ")
    assert run("enroll", "a", "--csr", "missing.csr") == 2


def test_without_the_libraries_of_a_hub_the_command_that_installs_them_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fleetfold.cli.hub.find_spec", lambda name: None)
    for words in (["hub", "init"], ["enroll", "a"], ["revoke", "a"]):
        assert run(*words) == 2
        assert "pip install 'fleetfold[hub]'" in capsys.readouterr().err


def test_other_commands_do_not_load_the_libraries_of_a_hub() -> None:
    script = "import sys, fleetfold.cli.main; sys.exit(bool({'aiohttp', 'cryptography'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
