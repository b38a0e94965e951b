"""Settings: their grammar, their layers, and what is said of a wrong one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfold.errors import BadConfig
from fleetfold.settings import NAMES, Settings, count, meaning, resolve, seconds, share


def test_the_flag_wins_over_the_environment_over_the_file_over_the_default() -> None:
    file, environment, flag = {"rounds": 3, "quorum": 0.1}, {"rounds": "4", "target": "0.9"}, {"rounds": "5"}
    settings, places = resolve({"fleetfold.toml": file, "environment": environment, "flag": flag})
    assert (settings.rounds, settings.target, settings.quorum) == (5, 0.9, 0.1)
    assert places["rounds"] == "flag"
    assert places["target"] == "environment"
    assert places["quorum"] == "fleetfold.toml"
    assert places["seed"] == "default"


@pytest.mark.parametrize(
    ("text", "value"), [("30", 30), ("30s", 30), ("200ms", 0.2), ("1.5m", 90), ("2h", 7200), ("1d", 86400)]
)
def test_a_time_is_written_as_people_write_it(text: str, value: float) -> None:
    assert seconds(text) == value


def test_a_whole_number_is_a_count_and_a_decimal_a_share() -> None:
    assert (share("7"), share("0.7"), share("70%"), share("1.0")) == (7, 0.7, 0.7, 1.0)
    assert (count(7, 10), count(0.75, 10), count(1.0, 10), count(20, 10), count(0.001, 10)) == (
        7,
        8,
        10,
        10,
        1,
    )


@given(st.floats(0.001, 1.0), st.integers(1, 10_000))
def test_a_share_of_a_whole_is_at_least_one_and_at_most_all(portion: float, whole: int) -> None:
    assert 1 <= count(portion, whole) <= whole


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rounds", "many", "a whole number"),
        ("rounds", "0", ">= 1"),
        ("quorum", "1.5", "a share"),
        ("deadline", "soon", "a time"),
        ("deadline", "0", "> 0"),
        ("select", "best", "one of turnaround"),
        ("fold", "median ", "module:name"),
        ("cadence", "now and then", "module:name"),
        ("quorm", "3", "did you mean 'quorum'"),
        ("fold", "medain", "did you mean 'median'"),
        ("fold", ":", "module:name"),
        ("turnaround_decay", "1.0", "< 1"),
    ],
)
def test_a_wrong_value_is_told_with_its_place_and_what_it_takes(name: str, value: str, said: str) -> None:
    with pytest.raises(BadConfig) as error:
        resolve({"the file": {name: value}})
    assert "the file" in error.value.sentence
    assert name in error.value.sentence
    assert said in error.value.sentence
    assert "--explain" in error.value.next


def test_a_function_of_the_users_own_is_a_value_where_one_is_taken() -> None:
    settings, _ = resolve({"file": {"select": "mine:choose", "cadence": "mine:pace", "fold": "a.b:c"}})
    assert (settings.select, settings.cadence, settings.fold) == ("mine:choose", "mine:pace", "a.b:c")


def test_every_setting_says_what_it_means() -> None:
    assert all(meaning(name) for name in NAMES)
    assert resolve({})[0] == Settings()
