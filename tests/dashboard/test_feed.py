"""A page of changes: what is newer than the cursor, as much as fits, and where to go on."""

import json

from fleetfold.dashboard.feed import Feed


def read(feed: Feed, cursor: str = "", budget: int = 1000) -> tuple[dict[str, list[object]], str, bool]:
    page = feed.since(cursor, budget)
    return (
        {table: json.loads(b"[" + rows + b"]") for table, rows in page.tables.items()},
        page.cursor,
        page.more,
    )


def test_what_has_not_changed_is_not_told_again() -> None:
    feed = Feed("a")
    feed.put("devices", 1, (1, "x"))
    told, cursor, more = read(feed)
    assert (told, more) == ({"devices": [[1, "x"]]}, False)
    feed.put("devices", 1, (1, "x"))
    assert read(feed, cursor)[0] == {}
    feed.put("devices", 1, (1, "y"))
    assert read(feed, cursor)[0] == {"devices": [[1, "y"]]}


def test_what_does_not_fit_a_page_is_on_the_next_and_each_row_is_told_once() -> None:
    feed = Feed("a")
    for id in range(100):
        feed.put("devices", id, (id, "some name"))
        feed.put("rounds", id, (id, 0))
    told, cursor, pages, more = [], "", 0, True
    while more:
        found, cursor, more = read(feed, cursor, 200)
        told += [(table, row[0]) for table, rows in found.items() for row in rows]  # type: ignore[index]
        pages += 1
    assert sorted(told) == sorted((table, id) for table in ("devices", "rounds") for id in range(100))
    assert pages > 5
    assert told[0][0] == "rounds", "what is looked at first comes first"


def test_a_row_that_changes_while_pages_are_read_is_told_again() -> None:
    feed = Feed("a")
    for id in range(40):
        feed.put("devices", id, (id, "some name"))
    _, cursor, _ = read(feed, "", 200)
    feed.put("devices", 0, (0, "another"))
    told, more = [], True
    while more:
        found, cursor, more = read(feed, cursor, 200)
        told += found.get("devices", [])
    assert told[-1] == [0, "another"]
    assert len(told) < 41


def test_a_row_that_is_longer_than_a_page_is_told_all_the_same() -> None:
    feed = Feed("a")
    feed.put("devices", 1, (1, "x" * 5000))
    told, cursor, more = read(feed, "", 100)
    assert (len(told["devices"]), more) == (1, False)
    assert read(feed, cursor)[0] == {}


def test_a_cursor_of_another_life_or_of_nobody_is_the_beginning() -> None:
    feed = Feed("a")
    feed.put("devices", 1, (1, "x"))
    for cursor in ("", "b.0.0.9.0", "a.9", "a.x.0.0.0", "a.٣.0.0.0", "a.-1.0.0.0", "a." + "9" * 400, "…"):
        assert read(feed, cursor)[0] == {"devices": [[1, "x"]]}, cursor


def test_a_table_that_is_forgotten_is_told_anew() -> None:
    feed = Feed("a")
    feed.put("lanes", 1, (1, 4))
    _, cursor, _ = read(feed)
    feed.clear("lanes")
    assert read(feed, cursor)[0] == {}
    feed.put("lanes", 1, (1, 4))
    assert read(feed, cursor)[0] == {"lanes": [[1, 4]]}
