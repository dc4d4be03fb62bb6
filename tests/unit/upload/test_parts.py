"""The parts of a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.config import MAX_PART_BYTES, MIN_PART_BYTES
from mountpoint.upload.parts import (
    FREE_PARTS,
    MAX_PARTS,
    S3_LIMITS,
    min_size,
    next_step,
    part_size,
)

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


def reached(min_bytes: int, parts: int) -> int:
    """Return the size of a file with this many parts."""
    total = 0
    for _ in range(parts):
        size = part_size(min_bytes, total)
        assert MIN_PART_BYTES <= size <= MAX_PART_BYTES
        total += size
    return total


@pytest.mark.parametrize("min_mib", [5, 8, 64, 1024])
def test_all_parts_together_reach_the_largest_objects(min_mib: int) -> None:
    """With any part size, 10,000 parts hold 5 TiB."""
    assert reached(min_mib * MIB, MAX_PARTS) >= 5 * TIB


def test_the_largest_parts_reach_the_largest_object() -> None:
    """With the largest part size the limit is 48.8 TiB."""
    assert reached(MAX_PART_BYTES, MAX_PARTS) == 10_000 * 5 * GIB


@pytest.mark.parametrize(
    ("before", "size_mib"), [(0, 8), (9 * GIB, 8), (100 * GIB, 82), (1 * TIB, 839)]
)
def test_sizes(before: int, size_mib: int) -> None:
    """Files of usual sizes have parts of the configured size."""
    assert part_size(8 * MIB, before) == size_mib * MIB


@given(
    st.integers(1, 3000),
    st.integers(0, 5 * TIB),
    st.integers(0, 100 * MIB),
    st.integers(1, 5 * TIB),
    st.integers(0, TIB),
)
def test_ranges_become_parts_that_s3_takes(
    number: int, before: int, gathered: int, left: int, after: int
) -> None:
    """Any range of a file becomes parts within the limits, and little is read."""
    source = left + after
    read = 0
    while left:
        step = next_step(S3_LIMITS, number, before, gathered, source, left)
        assert 0 < step.size_bytes <= left
        if step.copied:
            assert not gathered or gathered >= min_size(S3_LIMITS, number, before)
            number, before = number + bool(gathered), before + gathered
            least = min_size(S3_LIMITS, number, before)
            assert min(least, MAX_PART_BYTES // 2) <= step.size_bytes <= MAX_PART_BYTES
            assert source > MIN_PART_BYTES
            number, before, gathered = number + 1, before + step.size_bytes, 0
        else:
            gathered += step.size_bytes
            read += step.size_bytes
        left -= step.size_bytes
    assert number <= MAX_PARTS
    if number <= FREE_PARTS:
        assert read < 2 * MIN_PART_BYTES


def test_small_ranges_of_a_large_file_do_not_use_up_the_numbers() -> None:
    """After many parts, copied ones grow with the file: smaller ranges are read."""
    assert next_step(S3_LIMITS, 1, 100 * GIB, 0, TIB, 10 * MIB).copied
    assert not next_step(S3_LIMITS, FREE_PARTS + 1, 100 * GIB, 0, TIB, 10 * MIB).copied


def test_the_smallest_parts_reach_the_largest_objects() -> None:
    """Even a file with only the smallest possible parts reaches 5 TiB."""
    total = 0
    for number in range(1, MAX_PARTS + 1):
        total += min_size(S3_LIMITS, number, total)
    assert total >= 5 * TIB
