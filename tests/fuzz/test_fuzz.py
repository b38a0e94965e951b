"""A sample of what `make fuzz` does at length, and what the fuzzer itself must be able to do."""

from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetfold.fold.gate import admit
from tests.fuzz import campaign, trial
from tests.fuzz.mutate import MUTATIONS, mutated
from tests.fuzz.oracle import objection
from tests.fuzz.trial import Fault, timed, tried
from tests.fuzz.valid import Case, altered, every_case, model

SEED = 20261121
PATIENCE = 60.0
"""Seconds in which a case is not taken to hang: tests run on machines that are busy with others."""


def test_every_valid_file_is_admitted_and_folded_and_is_one_by_the_oracle() -> None:
    for way, case in enumerate(every_case()):
        assert tried(case, case.file, way).admitted
        assert objection(case.file, case.expected) == ""


@pytest.mark.parametrize("part", range(4))
def test_a_thousand_mutated_files_are_refused_with_a_reason_or_are_updates(part: int) -> None:
    verdicts = Counter[bool]()
    for number in range(part * 1000, part * 1000 + 1000):
        case, data, _ = mutated(SEED, number)
        verdicts[timed(case, data, number, seconds=PATIENCE)[0].admitted] += 1
    assert 50 < verdicts[True] < 500, "some change only values, most are none any more"


@given(st.integers(0, 2**40), st.integers(0, 2**40))
@settings(max_examples=100)
def test_whatever_the_seed_what_is_admitted_is_an_update(seed: int, number: int) -> None:
    case, data, _ = mutated(seed, number)
    tried(case, data, number)


@lru_cache(maxsize=1)
def small_cases() -> list[Case]:
    return [case for case in every_case() if len(case.file) < 4000]


@given(st.binary(max_size=300), st.data())
@settings(max_examples=100)
def test_any_bytes_in_the_place_of_any_are_refused_or_are_an_update(
    noise: bytes, data: st.DataObject
) -> None:
    case = data.draw(st.sampled_from(small_cases()))
    file = case.file
    start = data.draw(st.integers(0, len(file)))
    stop = data.draw(st.integers(start, len(file)))
    tried(case, file[:start] + noise + file[stop:])


def test_the_same_seed_and_number_make_the_same_file() -> None:
    assert [mutated(3, k)[1] for k in range(200)] == [mutated(3, k)[1] for k in range(200)]
    assert mutated(3, 1)[1] != mutated(4, 1)[1]


def test_every_mutation_is_drawn() -> None:
    drawn = {name for k in range(1500) for name in mutated(SEED, k)[2].split("+")}
    assert drawn == {mutate.__name__ for mutate, _ in MUTATIONS}


# What it would find


def forever() -> None:
    while True:
        pass


def valid() -> Case:
    return next(c for c in every_case() if c.model is model("mixed"))


def test_a_gate_that_admits_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = valid()
    other = altered(case, about={**case.about, "round": 9})
    honest = admit(lambda at, n: case.file[at : at + n], len(case.file), case.expected)
    monkeypatch.setattr(trial, "admit", lambda *_: honest)
    with pytest.raises(Fault, match="admitted, although it is for another key"):
        tried(other, other.file)


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (lambda: [].pop(), "crashed with IndexError"),
        (lambda: forever(), "took over 0.2 s"),
        (lambda: bytearray(1 << 30), "took over 64 MB"),
    ],
)
def test_a_crash_a_hang_and_too_much_memory_are_found(
    deed: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "admit", lambda *_: deed())  # type: ignore[operator]
    with pytest.raises(Fault, match=said):
        timed(valid(), valid().file, 0, seconds=0.2)


def test_a_long_run_shares_the_numbers_and_says_what_came_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert campaign.run(seed=5, files=60, processes=2) == 0
    said = capsys.readouterr().out
    assert "60 files, seed 5, 2 processes" in said
    assert "60 of 60 files" in said
    assert "0 failed" in said


def test_a_case_is_tried_again_by_its_seed_and_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUZZ_FOLDER", str(tmp_path))
    assert campaign.again("5:17") == 0
    assert (tmp_path / "5-17.safetensors").read_bytes() == mutated(5, 17)[1]
    assert "case 5:17" in capsys.readouterr().out
