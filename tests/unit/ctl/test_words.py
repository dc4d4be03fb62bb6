"""Sizes, times and money in words."""

import pytest

from mountpoint.ctl.words import age, dollars, milliseconds, size


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_999, "1.0 MB"), (12e9, "12 GB")],
)  # fmt: skip
def test_sizes(value: float, text: str) -> None:
    """Sizes in the largest unit."""
    assert size(value) == text


def test_times_and_money() -> None:
    """Short, and never with exponents."""
    assert [milliseconds(us) for us in (0, 12, 999.6, 12_345)] == [
        "-",
        "12 us",
        "1.0 ms",
        "12.3 ms",
    ]
    assert [dollars(x) for x in (0, 1e-6, 0.5, 1234.5)] == [
        "$0.00",
        "$0.000001",
        "$0.50",
        "$1234.50",
    ]
    assert [age(s) for s in (5, 60, 7200, 200_000)] == ["5 s", "1 min", "2 h", "2 d"]
