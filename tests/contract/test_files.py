import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fleetfold.adapters import objects as module
from fleetfold.adapters.objects import FileObjects
from fleetfold.adapters.sqlite import SqliteBus, SqliteLink, SqliteRecords
from fleetfold.errors import Unavailable
from fleetfold.ports import Control, Link, Objects, Records, fetch
from tests.contract.bus import BusContract
from tests.contract.objects import ObjectsContract
from tests.contract.records import RecordsContract


@pytest.fixture(params=[False, True], ids=["kill -9", "power cut"])
def durable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class TestFileObjects(ObjectsContract):
    @pytest.fixture
    def objects(self, tmp_path: Path, durable: bool) -> Objects:
        return FileObjects(tmp_path / "objects", durable=durable)

    def test_before_a_power_cut_could_see_a_name_its_bytes_are_safe(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order: list[str] = []
        flush, sync, rename = module.flush, os.fsync, os.replace

        def noted_flush(path: Path) -> None:
            order.append(f"sync {path.name[:1]}")
            flush(path)

        def noted_sync(file: int) -> None:
            order.append("sync bytes")
            sync(file)

        def noted_rename(old: str, new: str) -> None:
            rename(old, new)
            order.append("name")

        monkeypatch.setattr(module, "flush", noted_flush)
        monkeypatch.setattr(module.os, "fsync", noted_sync)
        monkeypatch.setattr(module.os, "replace", noted_rename)
        FileObjects(tmp_path / "o", durable=True).put("k/x", [b"bytes"])
        named = order.index("name")
        assert order[:named] == ["sync bytes"], "the bytes under another name first"
        assert "sync k" in order[named:], "then the folder that holds the name"

    def test_what_a_dead_writer_left_is_swept_and_what_a_living_one_writes_is_not(
        self, tmp_path: Path
    ) -> None:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        FileObjects(tmp_path)
        for pid in (dead.pid, os.getpid()):
            (tmp_path / "staging" / f"{pid}-x").write_bytes(b"half")
        FileObjects(tmp_path)
        assert [p.name for p in (tmp_path / "staging").iterdir()] == [f"{os.getpid()}-x"]

    def test_of_many_who_write_an_object_first_one_does_and_it_stays(self, objects: FileObjects) -> None:
        start = threading.Barrier(8)

        def write(k: int) -> bool:
            with objects.writing("p/x") as writing:
                writing.write(b"written by ")
                writing.write(b"%d" % k)
                start.wait()
                return writing.finish_first()

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(write, range(8)))
        assert won.count(True) == 1
        assert fetch(objects, "p/x") == b"written by %d" % won.index(True)
        assert objects.list("staging/") == []

    def test_what_was_not_finished_was_never_there(self, objects: FileObjects) -> None:
        with objects.writing("p/x") as writing:
            writing.write(b"half")
        assert objects.size("p/x") is None
        assert objects.list("staging/") == []

    @pytest.mark.parametrize("taken", [False, True])
    def test_who_is_told_that_an_object_is_there_may_cut_the_power(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
    ) -> None:
        """Also who came second: the first may not have got so far yet."""
        if taken:
            FileObjects(tmp_path / "o").put("k/x", [b"bytes"])
        flushed: list[str] = []
        flush = module.flush
        monkeypatch.setattr(module, "flush", lambda path: (flushed.append(path.name), flush(path)))
        with FileObjects(tmp_path / "o", durable=True).writing("k/x") as writing:
            writing.write(b"bytes")
            assert writing.finish_first() is not taken
        assert flushed == ["k", "o"]

    def test_a_full_disk_says_so(self, tmp_path: Path) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        objects = FileObjects(tmp_path)
        (tmp_path / "folder").symlink_to("/dev/full")
        with pytest.raises(Unavailable):
            objects.put("folder/x", [b"x"])


class TestSqliteRecords(RecordsContract):
    @pytest.fixture
    def records(self, tmp_path: Path, durable: bool) -> Records:
        return SqliteRecords(tmp_path / "ledger.db", durable=durable)

    @pytest.fixture
    def same(self, tmp_path: Path, records: Records) -> Records:
        return SqliteRecords(tmp_path / "ledger.db")

    def test_of_many_writers_at_once_each_change_is_won_by_one(self, tmp_path: Path) -> None:
        SqliteRecords(tmp_path / "ledger.db").swap("k", b"0", expect=0)
        won: list[int] = []

        def write() -> None:
            records = SqliteRecords(tmp_path / "ledger.db")
            for _ in range(50):
                found = records.get("k")
                assert found is not None
                if records.swap("k", str(int(found.value) + 1).encode(), found.version):
                    won.append(1)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = SqliteRecords(tmp_path / "ledger.db").get("k")
        assert found is not None
        assert int(found.value) == len(won) == found.version - 1

    def test_what_was_committed_survives_the_death_of_its_process(self, tmp_path: Path) -> None:
        script = (
            "import os, signal, sys; from pathlib import Path\n"
            "from fleetfold.adapters.sqlite import SqliteRecords\n"
            "r = SqliteRecords(Path(sys.argv[1])); r.swap('k', b'1', 0); r.swap('k', b'2', 1)\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "l.db")], check=False)
        assert SqliteRecords(tmp_path / "l.db").get("k") == (b"2", 2)


class TestSqliteBus(BusContract):
    @pytest.fixture
    def control(self, tmp_path: Path, durable: bool) -> Control:
        return SqliteBus(tmp_path / "bus.db", durable=durable)

    @pytest.fixture
    def links(self, tmp_path: Path) -> Callable[[list[str]], Link]:
        return lambda devices: SqliteLink(tmp_path / "bus.db", devices)


def test_a_file_that_is_no_database_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database at all, but long enough to be taken for one" * 99)
    with pytest.raises(Unavailable, match=r"ledger\.db"):
        SqliteRecords(tmp_path / "ledger.db")
