"""What every adapter of Records keeps."""

from fleetfold.ports import Record, Records


class RecordsContract:
    """Subclass it with fixtures `records` and `same`: a second adapter over the same records."""

    def test_a_record_is_created_once(self, records: Records) -> None:
        assert records.swap("k", b"1", expect=0)
        assert not records.swap("k", b"2", expect=0)
        assert records.get("k") == Record(b"1", 1)

    def test_a_change_needs_the_version_that_it_was_made_from(self, records: Records, same: Records) -> None:
        records.swap("k", b"1", expect=0)
        assert same.swap("k", b"2", expect=1)
        assert not records.swap("k", b"3", expect=1)
        assert records.get("k") == Record(b"2", 2)

    def test_what_is_not_there_cannot_be_changed(self, records: Records) -> None:
        assert records.get("k") is None
        assert not records.swap("k", b"1", expect=1)

    def test_many_are_written_whatever_was_there_and_their_versions_go_on(self, records: Records) -> None:
        records.swap("a", b"0", expect=0)
        records.put_many([("a", b"1"), ("b", b"2")])
        records.put_many([])
        assert records.get("a") == Record(b"1", 2)
        assert records.get("b") == Record(b"2", 1)
        assert not records.swap("a", b"9", expect=1), "a stale version does not come back to life"

    def test_several_are_read_at_once_as_far_as_they_are_there(self, records: Records, same: Records) -> None:
        records.put_many([(f"p/{n}", b"%d" % n) for n in range(120)])
        asked = [f"p/{n}" for n in range(0, 240, 2)]
        assert same.get_many(asked) == {f"p/{n}": Record(b"%d" % n, 1) for n in range(0, 120, 2)}
        assert records.get_many([]) == {}

    def test_records_are_scanned_right_below_their_prefix_in_order(
        self, records: Records, same: Records
    ) -> None:
        keys = ("p/b", "p/a/x", "p/a", "q/a", "p", "p0", "p/é", "p/a-1", "p/a.1/x")
        records.put_many([(key, key.encode()) for key in keys])
        assert [key for key, _ in same.scan("p/")] == ["p/a", "p/a-1", "p/b", "p/é"]
        assert [key for key, _ in same.scan("p/a/")] == ["p/a/x"]
        assert list(records.scan("none/")) == []
