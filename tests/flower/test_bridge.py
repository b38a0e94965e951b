"""The bridge's parts: what apps and it say to each other, SuperNodes that die, what is told beforehand."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fleetfold.adapters.lock import is_locked
from fleetfold.errors import BadConfig, Unavailable
from fleetfold.flower.app import fingerprint
from fleetfold.flower.bridge import nodes as bridge_nodes
from fleetfold.flower.bridge.app import Forwarding, until
from fleetfold.flower.bridge.bridge import Bridge
from fleetfold.flower.bridge.keeper import reason, standings
from fleetfold.flower.bridge.lines import ADDRESS, SPOOL, Back, Forward, ask, failed
from fleetfold.flower.bridge.nodes import KEEPER, PORT, Link, Node, Plan, keyed, plan, reach
from fleetfold.fold.tensors import read
from fleetfold.messages import Envelope
from tests.hub.conftest import free_port
from tests.hub.pki import Authority

SOON = 60.0


def eventually(found: Callable[[], object]) -> None:
    give_up = time.monotonic() + SOON
    while not found():
        assert time.monotonic() < give_up, "it did not come"
        time.sleep(0.01)


def forward(id: str = "m1", device: str = "a", seconds: float = 60.0, file: str = "") -> Forward:
    about = Envelope(id=id, type="train")
    return Forward(
        device=device, run=7, message=about, settings={}, file=file, digest="", size=0,
        until=time.time() + seconds,
    )  # fmt: skip


class Echo:
    """Answers those messages that it is told to."""

    def __init__(self) -> None:
        self.taken: list[Forward] = []
        self.answers: dict[str, Back] = {}
        self.closed = False

    def take(self, forward: Forward) -> None:
        if forward.message.id == "wrong":
            raise BadConfig("this one is too large")
        self.taken.append(forward)

    def step(self) -> float:
        return float("inf")

    def back(self, forward: Forward) -> Back | None:
        return self.answers.get(forward.message.id)

    def close(self) -> None:
        self.closed = True


@contextmanager
def serving(folder: Path, post: Echo, nodes: tuple[Node, ...] = ()) -> Iterator[Bridge]:
    """A bridge with SuperNodes of that kind, or none."""
    devices = nodes or tuple(
        Node(device=d, command=("sleep", "1000"), environment={}, log=os.devnull) for d in "ab"
    )
    bridge = Bridge(folder, Plan(nodes=devices), lambda: post, lambda sentence: None)
    thread = threading.Thread(target=bridge.serve, args=(lambda rows: None,))
    thread.start()
    try:
        eventually((folder / ADDRESS).exists)
        eventually(lambda: is_locked(folder / KEEPER))
        yield bridge
    finally:
        bridge.stop()
        thread.join(SOON)
        assert not thread.is_alive()


def answered(id: str) -> Back:
    return Back(message=Envelope(id=f"re-{id}", reply_to=id))


class Asking(threading.Thread):
    """An app that asks, in a thread of its own."""

    def __init__(self, folder: Path, forward: Forward) -> None:
        super().__init__()
        self._folder, self._forward = folder, forward
        self.back: Back | None = None
        self.start()

    def run(self) -> None:
        self.back = ask(self._folder, self._forward)


# What apps and the bridge say to each other


def test_an_app_waits_until_its_device_has_answered(tmp_path: Path) -> None:
    post = Echo()
    with serving(tmp_path, post) as bridge:
        asking = Asking(tmp_path, forward("m1"))
        eventually(lambda: post.taken)
        eventually(lambda: any(row.doing == "train" for row in bridge.rows))
        post.answers["m1"] = answered("m1")
        asking.join(SOON)
        assert asking.back == answered("m1")
        assert [(row.device, row.forwarded, row.failed) for row in bridge.rows] == [("a", 1, 0), ("b", 0, 0)]
    assert post.closed


def test_an_app_whose_bridge_has_left_asks_the_next_one(tmp_path: Path) -> None:
    first, second = Echo(), Echo()
    with serving(tmp_path, first):
        asking = Asking(tmp_path, forward("m1"))
        eventually(lambda: first.taken)
    second.answers["m1"] = answered("m1")
    with serving(tmp_path, second):
        asking.join(SOON)
    assert asking.back == answered("m1")


def test_an_app_that_finds_no_bridge_gives_up_when_its_messages_time_is_over(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="a was not asked in time"):
        ask(tmp_path, forward(seconds=0.2))


def test_a_message_that_cannot_be_sent_is_an_error_reply(tmp_path: Path) -> None:
    with serving(tmp_path, Echo()) as bridge:
        back = ask(tmp_path, forward("wrong"))
        assert back.message.error == (2, "this one is too large")
        assert bridge.rows[0].failed == 1


def test_a_message_for_a_device_of_another_bridge_is_an_error_reply(tmp_path: Path) -> None:
    with serving(tmp_path, Echo()):
        back = ask(tmp_path, forward(device="c"))
    assert back.message.error == (5, "c is not behind this bridge")


def test_who_says_what_is_no_message_is_not_listened_to(tmp_path: Path) -> None:
    post = Echo()
    with serving(tmp_path, post):
        for said in (b"{}\n", b"\x00" * 100 + b"\n", b"[" * 10_000 + b"\n", b""):
            with socket.socket(socket.AF_UNIX) as app:
                app.connect((tmp_path / ADDRESS).read_text())
                app.sendall(said)
                app.shutdown(socket.SHUT_WR)
                assert app.recv(1) == b""
        post.answers["m1"] = answered("m1")
        assert ask(tmp_path, forward("m1")) == answered("m1")
    assert [each.message.id for each in post.taken] == ["m1"]


def test_only_this_user_may_connect(tmp_path: Path) -> None:
    with serving(tmp_path, Echo()):
        room = Path((tmp_path / ADDRESS).read_text()).parent
        assert room.stat().st_mode & 0o077 == 0
    assert not room.exists()


def test_there_is_one_bridge_at_a_time(tmp_path: Path) -> None:
    with serving(tmp_path, Echo()), pytest.raises(BadConfig, match="runs already, as process"):
        Bridge(tmp_path, Plan(nodes=()), Echo, print).serve(lambda rows: None)


def test_a_messages_time_leaves_room_for_the_answers_way() -> None:
    assert until(1_000.0, 3_600.0) == 4_590.0
    assert until(1_000.0, 20.0) == 1_018.0


# The app in the SuperNode's place


def message(ttl: float = 60.0):  # type: ignore[no-untyped-def]
    from fleetfold.flower import private

    flwr = pytest.importorskip("flwr.app")
    arrays = flwr.ArrayRecord([np.arange(6, dtype=np.float32).reshape(2, 3), np.array(2.5)])
    content = flwr.RecordDict(
        {"arrays": arrays, "config": flwr.ConfigRecord({"server-round": 2, "secret": b"x"})}
    )
    about = {"src": 1, "dst": 99, "type": "train", "group": "", "ttl": ttl, "reply_to": ""}
    sent = private.message(content, None, id="m1", run=7, created=time.time(), **about)
    context = flwr.Context(7, 99, {"partition-id": 0}, flwr.RecordDict(), {"lr": 0.5})
    return sent, context


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An app as the SuperLink gives it."""
    (tmp_path / "app" / "mine").mkdir(parents=True)
    (tmp_path / "app" / "pyproject.toml").write_text('[tool.flwr.app]\npublisher = "me"\n')
    (tmp_path / "app" / "mine" / "client.py").write_text("app = 1\n")
    return tmp_path / "app"


def test_a_message_is_forwarded_with_all_it_holds_and_the_answer_is_flowers_own(
    tmp_path: Path, app: Path
) -> None:
    (tmp_path / SPOOL).mkdir()
    sent, context = message()
    post = Echo()
    with serving(tmp_path, post):
        answers: list[object] = []
        asking = threading.Thread(
            target=lambda: answers.append(Forwarding(tmp_path, "a", app)(sent, context))
        )
        asking.start()
        eventually(lambda: post.taken)
        (asked,) = post.taken
        tensors, _ = read(Path(asked.file).read_bytes())
        assert [list(tensor.ravel()) for tensor in tensors.values()] == [[0, 1, 2, 3, 4, 5], [2.5]]
        about = asked.message
        assert (asked.run, asked.settings, about.id, about.type, about.dst) == (
            7,
            {"lr": 0.5},
            "m1",
            "train",
            99,
        )
        assert about.app == fingerprint(app)
        kept = tmp_path / "answer.safetensors"
        kept.write_bytes(Path(asked.file).read_bytes())
        records = [["arrays", "arrays", "", {}], ["metrics", "metrics", [["num-examples", 3]]]]
        post.answers["m1"] = Back(message=Envelope(id="re", reply_to="m1", records=records), file=str(kept))
        asking.join(SOON)
    (reply,) = answers
    assert reply.metadata.reply_to_message_id == "m1"  # type: ignore[attr-defined]
    content = reply.content  # type: ignore[attr-defined]
    assert content["metrics"]["num-examples"] == 3
    assert np.array_equal(
        content["arrays"].to_numpy_ndarrays()[0], np.arange(6, dtype=np.float32).reshape(2, 3)
    )
    assert not list((tmp_path / SPOOL).iterdir())


def test_a_device_that_fails_is_an_error_of_flowers(tmp_path: Path, app: Path) -> None:
    (tmp_path / SPOOL).mkdir()
    sent, context = message()
    post = Echo()
    post.answers["m1"] = failed(forward("m1"), "a did not answer within 6 s", 5)
    with serving(tmp_path, post):
        reply = Forwarding(tmp_path, "a", app)(sent, context)
    assert (reply.error.code, reply.error.reason) == (5, "a did not answer within 6 s")


def test_without_a_bridge_a_short_message_is_an_error_reply_and_no_stall(tmp_path: Path, app: Path) -> None:
    (tmp_path / SPOOL).mkdir()
    sent, context = message(ttl=0.5)
    reply = Forwarding(tmp_path, "a", app)(sent, context)
    assert reply.error.code == 5


def test_an_app_is_the_same_in_the_file_that_flower_makes_of_it(tmp_path: Path, app: Path) -> None:
    """Flower writes pyproject.toml anew, without federations, and leaves tests out."""
    given = fingerprint(app)
    (app / "pyproject.toml").write_text(
        "[tool.flwr.federations]\ndefault = \"local\"\n\n[tool.flwr.app]\npublisher   = 'me'\n"
    )
    (app / "mine" / "test_client.py").write_text("assert True\n")
    assert fingerprint(app) == given
    (app / "mine" / "client.py").write_text("app = 2\n")
    assert fingerprint(app) != given


# SuperNodes


def node(folder: Path, script: str) -> tuple[Node, ...]:
    command = (sys.executable, "-c", script, PORT)
    return (Node(device="a", command=command, environment={"MADE": "here"}, log=str(folder / "a.log")),)


UP = "import subprocess, sys, time; print('SuperNode ID: 42', flush=True); subprocess.run(['sleep', '1000'])"


def test_a_supernode_is_connected_when_it_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, Echo(), node(tmp_path, UP)) as bridge:
        eventually(lambda: bridge.rows[0].standing and bridge.rows[0].standing.state == "connected")
        standing = bridge.rows[0].standing
        assert standing is not None
        assert (standing.node, standing.starts) == ("42", 1)
    assert standings(tmp_path) == {}
    assert not Path(f"/proc/{standing.pid}").exists()


def test_a_supernode_that_ends_is_started_again_and_says_why(tmp_path: Path) -> None:
    script = "print('[code: 2004] Failed to activate SuperNode.'); raise SystemExit(1)"
    with serving(tmp_path, Echo(), node(tmp_path, script)) as bridge:
        eventually(lambda: bridge.rows[0].standing and bridge.rows[0].standing.starts >= 2)
        standing = bridge.rows[0].standing
        assert standing is not None
        assert standing.why == "the SuperLink does not know its key, or has not yet given up the one before"


def test_a_supernode_that_was_killed_waits_until_the_superlink_has_given_it_up(tmp_path: Path) -> None:
    with serving(tmp_path, Echo(), node(tmp_path, UP)) as bridge:
        eventually(lambda: bridge.rows[0].standing and bridge.rows[0].standing.state == "connected")
        assert bridge.rows[0].standing is not None
        os.kill(bridge.rows[0].standing.pid, signal.SIGKILL)
        eventually(lambda: bridge.rows[0].standing and bridge.rows[0].standing.state == "waiting")
        standing = bridge.rows[0].standing
        assert standing is not None
        assert standing.why == "it was killed by SIGKILL"
        assert standing.at - time.time() > 60


def test_a_supernode_whose_executor_was_killed_is_ended_for_it_would_work_no_more(tmp_path: Path) -> None:
    script = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '1000']);"
        "print('SuperNode ID: 42', flush=True); time.sleep(1); child.kill(); time.sleep(1000)"
    )
    with serving(tmp_path, Echo(), node(tmp_path, script)) as bridge:
        eventually(lambda: bridge.rows[0].standing and bridge.rows[0].standing.why)
        standing = bridge.rows[0].standing
        assert standing is not None
        assert standing.why == "it was killed by SIGTERM"


def test_supernodes_live_on_when_the_bridge_is_killed_and_the_next_bridge_has_them(tmp_path: Path) -> None:
    nodes = node(tmp_path, UP)
    script = (
        "import sys; from pathlib import Path; from tests.flower.test_bridge import Echo, Plan, Bridge, node;"
        "folder = Path(sys.argv[1]);"
        f"Bridge(folder, Plan(nodes=node(folder, {UP!r})), Echo, print).serve(lambda rows: None)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2]
    ) as first:
        eventually(lambda: any(each.state == "connected" for each in standings(tmp_path).values()))
        first.kill()
    pid = standings(tmp_path)["a"].pid
    with serving(tmp_path, Echo(), nodes) as bridge:
        eventually(lambda: bridge.rows[0].standing is not None)
        assert bridge.rows[0].standing is not None
        assert (bridge.rows[0].standing.pid, bridge.rows[0].standing.starts) == (pid, 1)
    assert not Path(f"/proc/{pid}").exists()


def test_a_keeper_that_was_killed_has_a_successor_and_its_supernodes_too(tmp_path: Path) -> None:
    with serving(tmp_path, Echo(), node(tmp_path, UP)) as bridge:
        eventually(lambda: bridge.rows[0].standing and bridge.rows[0].standing.state == "connected")
        before = standings(tmp_path)["a"].pid
        os.kill(int((tmp_path / KEEPER).read_text()), signal.SIGKILL)
        eventually(lambda: standings(tmp_path)["a"].pid not in (0, before))
        assert not Path(f"/proc/{before}").exists()


def test_supernodes_end_when_there_is_no_bridge_any_more(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(Plan(nodes=node(tmp_path, UP), grace=0.5)))
    (tmp_path / "bridge.lock").touch()
    bridge_keeper_process = threading.Thread(target=_keep, args=(tmp_path,))
    bridge_keeper_process.start()
    eventually(lambda: any(each.state == "connected" for each in standings(tmp_path).values()))
    bridge_keeper_process.join(SOON)
    assert not bridge_keeper_process.is_alive()
    assert standings(tmp_path) == {}


def _keep(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "fleetfold.flower.bridge.keeper", str(folder)], check=True)


def test_why_a_supernode_ended_is_found_in_what_it_said() -> None:
    said = (
        "\x1b[92mINFO\x1b[0m: Starting\nERROR :     Exit Code: 305\nFailed to initialize the connection\n"
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate\n"
    )
    assert reason("[code: 1234] No such thing.\n", 1) == "No such thing."
    assert "certificate verify failed" in reason(said + "an error: " + said.splitlines()[-1], 1)
    assert reason("", 3) == "it ended with code 3"
    assert reason("", -signal.SIGTERM) == "it was killed by SIGTERM"


# What is told before anything is started


@contextmanager
def tls_server(folder: Path) -> Iterator[tuple[int, Path]]:
    """Something with a certificate, at 127.0.0.1. → (its port, whom its certificate is from)"""
    authority = Authority(folder)
    certificate, key = authority.issue("superlink", "", server=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ExitStack() as stack:
        server = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
        done = threading.Event()

        def serve() -> None:
            server.settimeout(0.05)
            while not done.is_set():
                try:
                    connection, _ = server.accept()
                    with connection, context.wrap_socket(connection, server_side=True):
                        pass
                except OSError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join)
        stack.callback(done.set)
        yield server.getsockname()[1], authority.file


def test_a_superlink_whose_certificate_is_vouched_for_is_reached(tmp_path: Path) -> None:
    with tls_server(tmp_path) as (port, root):
        reach(Link(address=f"127.0.0.1:{port}", root=str(root)))


def test_a_certificate_of_another_authority_is_told_as_that(tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").file
    with tls_server(tmp_path) as (port, _), pytest.raises(BadConfig, match="does not vouch for") as told:
        reach(Link(address=f"127.0.0.1:{port}", root=str(other)))
    assert "--root-certificates" in told.value.next


def test_where_no_superlink_is_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no SuperLink answers at 127\.0\.0\.1"):
        reach(Link(address=f"127.0.0.1:{free_port()}", insecure=True))


def test_a_file_that_is_no_certificate_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("none")
    with pytest.raises(BadConfig, match="--root-certificates"):
        reach(Link(address="127.0.0.1:9092", root=str(tmp_path / "ca.crt")))


@pytest.mark.parametrize("address", ["link.example", "https://link:9092", ":9092", "link:0", "link:99999"])
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(BadConfig, match="not HOST:PORT"):
        reach(Link(address=address))


def test_without_flowers_own_command_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_nodes.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadConfig, match="no flower-supernode") as told:
        bridge_nodes.program()
    assert told.value.next == "pip install 'fleetfold[flower]'"


def test_a_device_has_a_key_of_its_own_that_is_made_once(tmp_path: Path) -> None:
    path, fresh = keyed(tmp_path / "keys", "device-1")
    assert fresh
    assert path.stat().st_mode & 0o077 == 0
    private = load_ssh_private_key(path.read_bytes(), None)
    public = load_ssh_public_key(path.with_name("device-1.pub").read_bytes())
    assert private.public_key() == public
    assert keyed(tmp_path / "keys", "device-1") == (path, False)


def test_each_device_has_a_supernode_with_its_key_its_place_and_what_it_is_told(tmp_path: Path) -> None:
    link = Link(address="link.example:9092", root="/ca.crt")
    made = plan(tmp_path, link, ["a", "b"], {"b": 'colour="blue"'}, tmp_path / "keys")
    a, b = (node.command for node in made.nodes)
    assert a[a.index("--superlink") + 1] == "link.example:9092"
    assert a[a.index("--root-certificates") + 1] == "/ca.crt"
    assert b[b.index("--auth-supernode-private-key") + 1] == str(tmp_path / "keys" / "b")
    assert b[b.index("--node-config") + 1] == 'partition-id=1 num-partitions=2 device="b" colour="blue"'
    assert made.nodes[0].environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert (tmp_path / "bin" / "flwr-clientapp").stat().st_mode & 0o100
    assert plan(tmp_path, link, ["a", "b"], {"b": 'colour="blue"'}, tmp_path / "keys") == made


def test_two_superlinks_have_bridges_of_their_own() -> None:
    names = {
        Link(address=address).name for address in ("link:9092", "link.9092:1", "[::1]:9092", "link:9093")
    }
    assert len(names) == 4
