"""Durations on the command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.duration import seconds, spoken
from training.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("30min", 1800), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h 30min 5s", 5405),
     ("1.5H", 5400), (" 2d ", 172800), ("0.5 s", 0.5)],
)  # fmt: skip
def test_durations(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "30", "h", "-5s", "5 parsecs", "30m1h", "1h1h", "1h30", "0s", "0h0s", "1e3s", "nan s", "1..5h", f"{10**400}d"],
)  # fmt: skip
def test_what_is_no_duration_is_refused_in_one_line(text):
    with pytest.raises(SettingsError, match="expected a duration such as 90s, 30min or 1h30m, got") as refused:
        seconds(text)
    assert "\n" not in str(refused.value)


def test_a_missing_unit_is_asked_for():
    with pytest.raises(SettingsError, match="does 30 mean 30min"):
        seconds("30")


@given(st.floats(0.1, 1e9))
def test_what_is_spoken_is_a_duration_that_means_about_the_same(duration):
    assert seconds(spoken(duration).replace(",", "")) == pytest.approx(duration, rel=0.06)
