"""Sizes and durations in words."""

import pytest

from mountpoint.checks import words
from mountpoint.config import (
    MIB,
)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (64 * MIB, "64.0 MiB"),
        (3 << 40, "3,072.0 GiB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    """Sizes in a readable form."""
    assert words.size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59, "59 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (864_000, "10 days")],
)
def test_durations(seconds: float, text: str) -> None:
    """Durations in a readable form."""
    assert words.duration(seconds) == text
