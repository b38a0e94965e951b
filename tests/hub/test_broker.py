"""Who may do what at the broker, over the wire: every certificate against every topic, every stranger
against every port, every way to stay in after a revocation."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from fleetfold.bundle import Bundle
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.hub import authority
from fleetfold.hub.broker import Broker, tell
from fleetfold.hub.enrol import credential, revoke
from fleetfold.layout import FROM_DEVICE, TO_DEVICE, topic
from fleetfold.messages import LIMIT, Presence, encode
from tests.hub.conftest import DEVICES, Enrolled
from tests.hub.raw import PATIENCE, Pair, Raw, hub_pair, leaving, pair, trust

# paho leaves a socket open whose WebSockets handshake was refused.
pytestmark = pytest.mark.filterwarnings("ignore:.*SSLSocket:pytest.PytestUnraisableExceptionWarning")
WORDS = (*TO_DEVICE, *FROM_DEVICE)
PORTS = pytest.mark.parametrize("websockets", [False, True], ids=["mqtts", "wss"])
GRANTED, DENIED = "Granted QoS 1", "Not authorized"
OFFLINE = encode(Presence(device="gone", online=False, available=False, reason="revoked"))
WILL = topic("main", "a", "presence")
Enter = Callable[..., Raw]


@pytest.fixture(scope="module")
def hub(site: Enrolled, broker: Broker) -> Iterator[Raw]:
    client = Raw(site, hub_pair(site))
    assert client.subscribe("fleetfold/main/#") == GRANTED
    yield client
    client.leave()


@pytest.fixture(scope="module")
def connected() -> Iterator[dict[str, Raw]]:
    clients: dict[str, Raw] = {}
    yield clients
    for client in clients.values():
        client.leave()


@pytest.fixture
def inside(site: Enrolled, broker: Broker, connected: dict[str, Raw]) -> dict[str, Raw]:
    """Every device, connected under its own certificate."""
    for device in DEVICES:
        if device not in connected or not connected[device].inside:
            connected[device] = Raw(site, pair(site.bundles[device]))
    return connected


@pytest.fixture
def enter(site: Enrolled, broker: Broker) -> Iterator[Enter]:
    """Connects somebody until the end of the test."""
    clients: list[Raw] = []

    def enter(who: Pair | None, **how: object) -> Raw:
        clients.append(Raw(site, who, **how))  # type: ignore[arg-type]
        return clients[-1]

    yield enter
    for client in clients:
        client.leave()


def settled(hub: Raw, device: str, client: Raw) -> None:
    """Everything that the hub could have heard of this device, and the device of the hub, has come: what is
    said last on a connection comes last."""
    settled.said += 1  # type: ignore[attr-defined]
    mark = str(settled.said).encode()  # type: ignore[attr-defined]
    assert client.publish(topic("main", device, "status"), mark) == "Success"
    hub.until_heard(topic("main", device, "status"), mark)
    assert client.subscribe(topic("main", device, "command")) == GRANTED
    hub.publish(topic("main", device, "command"), mark)
    client.until_heard(topic("main", device, "command"), mark)


settled.said = 0  # type: ignore[attr-defined]


# Every pair


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("whose", [*DEVICES, "hub", "nobody"])
@pytest.mark.parametrize("who", DEVICES)
def test_a_device_hears_the_three_topics_of_its_own_and_none_else(
    inside: dict[str, Raw], who: str, whose: str, word: str
) -> None:
    allowed = who == whose and word in TO_DEVICE
    assert inside[who].subscribe(topic("main", whose, word)) == (GRANTED if allowed else DENIED)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("whose", [*DEVICES, "hub", "nobody"])
@pytest.mark.parametrize("who", DEVICES)
def test_a_device_speaks_on_the_four_topics_of_its_own_and_on_none_else(
    hub: Raw, inside: dict[str, Raw], who: str, whose: str, word: str
) -> None:
    said = f"{who} to {whose}".encode()
    allowed = who == whose and word in FROM_DEVICE
    assert inside[who].publish(topic("main", whose, word), said) == ("Success" if allowed else DENIED)
    settled(hub, who, inside[who])
    assert ((topic("main", whose, word), said) in hub.heard) == allowed


@pytest.mark.parametrize("way", [
    "#", "+", "/#", "+/#", "fleetfold/#", "fleetfold/+/+/task", "fleetfold/main/#", "fleetfold/main/+/task",
    "fleetfold/main/a/#", "fleetfold/main/a/+", "+/main/a/task", "fleetfold/main/b/#",
    "fleetfold/other/a/task", "fleetfold/main/a/task/more", "fleetfold/main/a", "anything",
    "$SYS/#", "$SYS/broker/clients/connected", "$share/g/#",
    "$share/g/fleetfold/main/b/task", "$share/g/fleetfold/main/+/task", "$CONTROL/#",
    "$CONTROL/dynamic-security/v1/response",
])  # fmt: skip
def test_no_wildcard_share_or_system_topic_is_heard(hub: Raw, inside: dict[str, Raw], way: str) -> None:
    assert inside["a"].subscribe(way) == DENIED
    for other in ("b", "c"):
        hub.publish(topic("main", other, "task"), b"not for a", retain=True)
    settled(hub, "a", inside["a"])
    assert {heard for heard, _ in inside["a"].heard} <= {topic("main", "a", word) for word in TO_DEVICE}


@pytest.mark.parametrize("way", [
    "fleetfold", "fleetfold/main", "fleetfold/main/a", "fleetfold/main/a/other", "fleetfold/other/a/status",
    "fleetfold/main/a/status/more", "$SYS/broker/uptime", "$share/g/fleetfold/main/a/status", "anything",
    "$CONTROL/dynamic-security/v1",
])  # fmt: skip
def test_nothing_is_said_on_any_other_topic(
    site: Enrolled, hub: Raw, inside: dict[str, Raw], way: str
) -> None:
    known = credential(site.records, "a")
    assert known
    name = f"serialNumber={known.id},CN=a"
    role = '{"commands":[{"command":"addClientRole","username":"%s","rolename":"%s"}]}'
    assert inside["a"].publish(way, (role % (name, authority.HUB_ID)).encode(), retain=True) == DENIED
    settled(hub, "a", inside["a"])
    assert inside["a"].subscribe("fleetfold/main/#") == DENIED, "it has not made itself the hub"


def test_what_lies_retained_for_one_device_is_given_to_that_one_alone(
    site: Enrolled, hub: Raw, enter: Enter
) -> None:
    for device in DEVICES:
        hub.publish(topic("main", device, "task"), f"for {device}".encode(), retain=True)
    a = enter(pair(site.bundles["a"]))
    for device in DEVICES:
        a.subscribe(topic("main", device, "task"))
    settled(hub, "a", a)
    assert [said for where, said in a.heard if where.endswith("task")] == [b"for a"]


@pytest.mark.parametrize("whose", [*DEVICES, "hub", "nobody"])
@pytest.mark.parametrize("word", WORDS)
def test_a_last_will_is_heard_only_where_its_device_may_speak(
    site: Enrolled, hub: Raw, enter: Enter, whose: str, word: str
) -> None:
    hub.heard.clear()
    enter(pair(site.bundles["a"]), will=topic("main", whose, word)).vanish()
    settled(hub, "a", enter(pair(site.bundles["a"])))
    willed = [where for where, said in hub.heard if said == b"will"]
    allowed = whose == "a" and word in FROM_DEVICE
    assert willed == ([topic("main", whose, word)] if allowed else [])


# Identity


@PORTS
@pytest.mark.parametrize("claim", ["its user name", "hub", "victim", ""])
def test_no_device_takes_the_place_of_another_by_its_client_id(
    site: Enrolled, hub: Raw, enter: Enter, claim: str, websockets: bool
) -> None:
    victim, thief = (pair(site.enroll(name)) for name in ("victim", "thief"))  # whose sessions are new
    known = credential(site.records, "victim")
    assert known
    id = {"its user name": f"serialNumber={known.id},CN=victim"}.get(claim, claim)
    away = {"client_id": id, "clean": False, "session": 600}
    task = topic("main", "victim", "task")
    client = enter(victim, **away)
    client.subscribe(task)
    other = enter(thief, **away, websockets=websockets)
    assert (other.inside, other.why, other.session_present) == (True, "", False)
    settled(hub, "victim", client)  # it is still there
    client.vanish()
    hub.publish(task, b"secret")
    other = enter(thief, **away)
    settled(hub, "thief", other)
    assert (task, b"secret") not in other.heard
    client = enter(victim, client_id="another", clean=False, session=600)
    assert client.session_present
    client.until_heard(task, b"secret")


def _made(
    subject: str,
    by: authority.Authority,
    *,
    first: datetime = authority.FIRST,
    last: datetime = authority.LAST,
) -> Pair:
    """A certificate as the authority would make it, but for what is said here."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([
        x509.NameAttribute(x509.NameOID.COMMON_NAME, subject),
        x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, "0000000000000999"),
    ])  # fmt: skip
    issuer = by.certificate.subject
    builder = x509.CertificateBuilder(issuer, name, key.public_key(), 0x999, first, last)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return builder.sign(by.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode(), authority._pem(key)


def _self_signed(site: Enrolled) -> Pair:
    own = authority.new("main")
    return own.pem, authority._pem(own.key)


def _of_another_hub(site: Enrolled) -> Pair:
    """The same names throughout, and the id of a device that belongs."""
    known = credential(site.records, "a")
    assert known
    return authority.device_pair(authority.new("main"), "a", known.id)


def _signed_by_a_device(site: Enrolled) -> Pair:
    certificate, key = pair(site.bundles["a"])
    signer = load_pem_private_key(key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    made = _made("hub", authority.Authority(x509.load_pem_x509_certificate(certificate.encode()), signer))
    return made[0] + certificate, made[1]


STRANGERS: dict[str, Callable[[Enrolled], Pair | None]] = {
    "no certificate": lambda site: None,
    "self-signed": _self_signed,
    "of another hub": _of_another_hub,
    "signed by a device": _signed_by_a_device,
    "expired": lambda site: _made(
        "a", authority.load(site.folder), last=datetime.now(UTC) - timedelta(minutes=5)
    ),
    "of the future": lambda site: _made(
        "a", authority.load(site.folder), first=datetime.now(UTC) + timedelta(days=1)
    ),
    "the server's own": lambda site: hub_pair(site, "server"),
}


@PORTS
@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_does_not_get_past_tls(site: Enrolled, enter: Enter, who: str, websockets: bool) -> None:
    stranger = enter(STRANGERS[who](site), websockets=websockets)
    assert not stranger.inside
    assert stranger.why


@PORTS
def test_who_speaks_without_tls_or_an_old_one_is_not_answered(
    site: Enrolled, broker: Broker, websockets: bool
) -> None:
    port = site.place.websockets if websockets else site.place.mqtt
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        assert not answered(plain)
    old = trust(site, pair(site.bundles["a"]))
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain, pytest.raises(OSError):
        old.wrap_socket(plain, server_hostname="localhost")


def answered(connection: socket.socket) -> bool:
    """Whether the broker lets somebody in who says MQTT's first packet, of version 3.1.1."""
    try:
        connection.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x")
        return connection.recv(1) == b"\x20"
    except OSError:
        return False


def test_who_was_signed_for_but_is_in_no_record_can_do_nothing(
    site: Enrolled, hub: Raw, inside: dict[str, Raw], enter: Enter
) -> None:
    """As after a death between signature and record, should the bundle have got out."""
    stranger = enter(authority.device_pair(authority.load(site.folder), "a", "00000000deadbeef"))
    assert stranger.inside
    assert mute(stranger, "a")
    vanishes = enter(authority.device_pair(authority.load(site.folder), "a", "00000000deadbeef"), will=WILL)
    vanishes.vanish()
    settled(hub, "a", inside["a"])
    assert (WILL, b"will") not in hub.heard


# Revocation


def shut_out(site: Enrolled, bundle: Bundle) -> bool:
    """Whether it ends at TLS; over WebSockets, where Mosquitto 2.0 looks at no list, it can do nothing."""
    with leaving(Raw(site, pair(bundle))) as client:
        refused = not client.inside
    with leaving(Raw(site, pair(bundle), websockets=True)) as client:
        return refused and mute(client, bundle.device)


def mute(client: Raw, device: str) -> bool:
    """Whether it has no right at all, not even to the topics of its device."""
    topics = [topic("main", device, word) for word in WORDS]
    tried = [client.subscribe(where) for where in topics] + [client.publish(where) for where in topics]
    return set(tried) <= {DENIED, "gone"} and not client.heard


def test_who_is_revoked_while_connected_is_out_at_once_and_for_good(
    site: Enrolled, broker: Broker, hub: Raw, enter: Enter
) -> None:
    bundle = site.enroll("gone")
    client = enter(pair(bundle), session=600, clean=False)
    settled(hub, "gone", client)
    site.revoke("gone")
    client.until_gone()
    hub.until_heard(topic("main", "gone", "presence"), OFFLINE)
    before = len(client.heard)
    hub.publish(topic("main", "gone", "command"), b"after")
    assert shut_out(site, bundle)
    assert len(client.heard) == before
    site.enroll("gone")
    assert shut_out(site, bundle), "the device is back, that certificate is not"


def test_what_waited_for_a_device_when_it_was_revoked_is_not_given_to_it(
    site: Enrolled, hub: Raw, enter: Enter
) -> None:
    bundle = site.enroll("away")
    client = enter(pair(bundle), session=600, clean=False)
    settled(hub, "away", client)
    client.vanish()
    for word in TO_DEVICE:
        hub.publish(topic("main", "away", word), b"waits", retain=True)
    site.revoke("away")
    again = enter(pair(bundle), session=600, clean=False, websockets=True)
    assert again.inside
    assert mute(again, "away")
    assert again.inside, "its answers have come, and nothing before them"


@PORTS
def test_who_is_enrolled_anew_is_in_by_the_new_certificate_alone(
    site: Enrolled, hub: Raw, enter: Enter, websockets: bool
) -> None:
    name = f"again-{websockets}".lower()
    old = site.enroll(name)
    client = enter(pair(old), websockets=websockets)
    settled(hub, name, client)
    new = site.enroll(name)
    client.until_gone()
    assert shut_out(site, old)
    settled(hub, name, enter(pair(new), websockets=websockets))


def test_revocations_one_right_after_the_other_all_hold(site: Enrolled, broker: Broker) -> None:
    bundles = [site.enroll(f"many-{n}") for n in range(5)]
    for bundle in bundles:
        site.revoke(bundle.device)
    assert all(shut_out(site, bundle) for bundle in bundles)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_tls_session_from_before_a_revocation_opens_nothing_after(
    site: Enrolled, broker: Broker, version: ssl.TLSVersion
) -> None:
    bundle = site.enroll("resumes")
    context = trust(site, pair(bundle))
    context.maximum_version = version
    port = ("127.0.0.1", site.place.mqtt)
    with context.wrap_socket(socket.create_connection(port, PATIENCE), server_hostname="localhost") as first:
        assert answered(first)
        session = first.session
    site.revoke("resumes")
    again = socket.create_connection(port, PATIENCE)
    with (
        again,
        contextlib.suppress(ssl.SSLError),
        context.wrap_socket(again, server_hostname="localhost", session=session) as second,
    ):
        assert not answered(second)


def test_a_command_of_another_process_cuts_off_at_once(site: Enrolled, hub: Raw, enter: Enter) -> None:
    client = enter(pair(site.enroll("far")))
    settled(hub, "far", client)
    done = subprocess.run(
        [sys.executable, "-m", "fleetfold", "revoke", "far"], capture_output=True, text=True, check=False,
        env={**os.environ, "FLEETFOLD_HOME": str(site.folder.parent)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "far: revoked and cut off\n"), done.stderr
    client.until_gone()
    assert shut_out(site, site.bundles["a"]) is False
    site.revoke("far")  # once more does no harm


# What a device sends is bounded


def test_a_message_of_the_largest_size_passes_and_a_larger_one_ends_the_connection(
    site: Enrolled, hub: Raw, enter: Enter
) -> None:
    a = enter(pair(site.bundles["a"]))
    answer = topic("main", "a", "answer")
    assert a.publish(answer, b"x" * LIMIT) == "Success"
    hub.until_heard(answer, b"x" * LIMIT)
    assert a.publish(answer, b"y" * LIMIT * 2) == "gone"
    a = enter(pair(site.bundles["a"]))
    settled(hub, "a", a)
    assert not [said for where, said in hub.heard if where == answer and said[:1] == b"y"]


# The child


def test_the_broker_knows_when_it_starts_what_was_recorded_while_it_was_off(
    tmp_path: Path,
) -> None:
    site = Enrolled(tmp_path / "hub")
    site.revoke("a")
    old, new = site.bundles["b"], site.enroll("b")
    broker = Broker(site.folder, site.records)
    for _ in range(2):  # and after each start anew
        broker.restart()
        assert shut_out(site, site.bundles["a"])
        assert shut_out(site, old)
        for bundle in (new, site.bundles["c"]):
            client = Raw(site, pair(bundle))
            assert client.subscribe(topic("main", bundle.device, "task")) == GRANTED
            client.leave()
    broker.stop()
    assert not broker.alive()
    assert tell(site.folder, site.records, "a") is False, "none runs"


def test_a_second_broker_of_the_same_hub_is_refused_with_the_process_of_the_first(
    site: Enrolled, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetfold.hub.broker.ENDING", 0.1)
    with pytest.raises(BadConfig, match="runs already, as process"):
        Broker(site.folder, site.records).start()


def test_a_port_that_somebody_has_is_told(tmp_path: Path) -> None:
    site = Enrolled(tmp_path / "hub")
    with (
        socket.create_server(("127.0.0.1", site.place.mqtt)),
        pytest.raises(BadConfig, match="cannot have port"),
    ):
        Broker(site.folder, site.records).start()


def test_a_broker_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    site = Enrolled(tmp_path / "hub")
    (site.folder / "server.pem").write_text("no certificate")
    with pytest.raises(Unavailable, match=r"did not start: .*SSL"):
        Broker(site.folder, site.records).start()


def test_without_mosquitto_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Enrolled(tmp_path / "hub")
    monkeypatch.setattr("shutil.which", lambda *words, **more: None)
    with pytest.raises(BadConfig, match="apt install mosquitto"):
        Broker(site.folder, site.records).start()


def test_the_broker_ends_with_a_hub_that_is_killed_and_the_next_one_has_its_own(tmp_path: Path) -> None:
    site = Enrolled(tmp_path / "hub")
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom fleetfold.adapters.sqlite import SqliteRecords\n"
        "from fleetfold.hub.broker import Broker\nfolder = Path(sys.argv[1])\n"
        "Broker(folder, SqliteRecords(folder / 'hub.db')).start()\nprint('up', flush=True)\ntime.sleep(600)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", script, str(site.folder)], stdout=subprocess.PIPE)
    assert first.stdout
    assert first.stdout.readline() == b"up\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    second = Broker(site.folder, site.records)
    second.start()
    assert second.alive()
    second.stop()


def test_a_revocation_that_nobody_told_the_broker_of_is_told_by_the_same_command_again(
    site: Enrolled, hub: Raw, enter: Enter
) -> None:
    client = enter(pair(site.enroll("half")))
    settled(hub, "half", client)
    revoke(site.records, "half", now=2_000.0)  # and the process dies
    site.revoke("half")
    client.until_gone()
    assert shut_out(site, site.bundles["b"]) is False
