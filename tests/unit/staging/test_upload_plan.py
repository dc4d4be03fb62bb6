"""The plan of the upload of a staged file."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.config import MIN_PART_BYTES
from mountpoint.staging.extents import Extents
from mountpoint.staging.upload_plan import WORTH_BYTES, segments
from mountpoint.upload.parts import MAX_PARTS, part_size

MIB = 1 << 20
GIB = 1 << 30
PART = 8 * MIB


def planned(
    extents: Extents, part_bytes: int = PART, equal_bytes: int | None = None
) -> list[tuple[str, float, float]]:
    """Return the segments in MiB."""
    return [
        ("copy" if each.copied else "send", each.start / MIB, each.stop / MIB)
        for each in segments(extents, part_bytes, equal_bytes)
    ]


def base(size: int, *changed: tuple[int, int]) -> Extents:
    """Return a file with a base of `size` bytes, and changes."""
    extents = Extents(size)
    for start, stop in changed:
        extents.write(start, stop)
    return extents


def test_a_new_file_is_sent() -> None:
    """Without a base nothing is copied; an empty file has no segments."""
    assert segments(Extents(None), PART) == []
    extents = Extents(None)
    extents.write(0, 100 * MIB)
    assert planned(extents) == [("send", 0, 100)]


def test_only_appended_bytes_are_sent() -> None:
    """The base is copied, and the last part may be short."""
    assert planned(base(100 * MIB, (100 * MIB, 100 * MIB + MIB))) == [
        ("copy", 0, 100),
        ("send", 100, 101),
    ]


def test_a_change_is_sent_with_the_next_bytes() -> None:
    """A part that is followed by another has at least 5 MiB."""
    assert planned(base(100 * MIB, (50 * MIB, 51 * MIB))) == [
        ("copy", 0, 50),
        ("send", 50, 55),
        ("copy", 55, 100),
    ]


def test_ranges_too_small_to_copy_are_sent() -> None:
    """Less than 5 MiB between two changes, or before the first one, is too small for a part."""
    extents = base(100 * MIB, (4 * MIB, 5 * MIB), (9 * MIB, 10 * MIB))
    assert planned(extents) == [("send", 0, 13), ("copy", 13, 100)]


def test_no_part_that_is_sent_before_a_copy_is_small() -> None:
    """10 MiB are a part of 8 and one of 2, which has to grow to 5."""
    assert planned(base(100 * MIB, (0, 10 * MIB))) == [("send", 0, 13), ("copy", 13, 100)]
    assert planned(base(100 * MIB, (0, 8 * MIB))) == [("send", 0, 8), ("copy", 8, 100)]


def test_local_bytes_are_sent_unless_copying_is_faster() -> None:
    """6 MiB that would have to be fetched are copied; 6 MiB that are local are sent."""
    extents = base(100 * MIB, (6 * MIB, 20 * MIB))
    assert planned(extents)[0] == ("copy", 0, 6)
    extents.fetched(0, 6 * MIB)
    assert planned(extents)[0] == ("send", 0, 21)


def test_a_small_file_is_sent_in_one_piece() -> None:
    """One PUT needs fewer requests than a copy in parts."""
    assert planned(base(7 * MIB, (7 * MIB, 7 * MIB + 1))) == [("send", 0, 7 + 1 / MIB)]


def test_truncated_bytes_become_zeros() -> None:
    """Truncated bytes do not return when the file grows again."""
    extents = base(100 * MIB)
    extents.truncate(30 * MIB)
    assert planned(extents) == [("copy", 0, 30)]
    extents.truncate(60 * MIB)
    assert planned(extents) == [("copy", 0, 30), ("send", 30, 60)]


def test_whole_parts_are_copied_if_all_have_one_size() -> None:
    """Only parts with changes are sent; the end is copied unchanged."""
    extents = base(100 * MIB, (50 * MIB, 51 * MIB), (55 * MIB, 57 * MIB), (80 * MIB, 81 * MIB))
    assert planned(extents, equal_bytes=PART) == [
        ("copy", 0, 48),
        ("send", 48, 64),
        ("copy", 64, 80),
        ("send", 80, 88),
        ("copy", 88, 100),
    ]
    assert planned(base(100 * MIB, (0, 1)), equal_bytes=PART) == [("send", 0, 8), ("copy", 8, 100)]
    appended = base(100 * MIB, (100 * MIB, 101 * MIB))
    assert planned(appended, equal_bytes=PART) == [("copy", 0, 96), ("send", 96, 101)]
    small = base(7 * MIB, (7 * MIB, 7 * MIB + 1))
    assert planned(small, equal_bytes=PART) == [("send", 0, 7 + 1 / MIB)]


@pytest.mark.parametrize("size", [100 * GIB, 5 << 40])
def test_there_are_parts_for_all_segments(size: int) -> None:
    """With any number of changes there are at most 10,000 parts."""
    extents = Extents(size)
    step = size // 20_000
    for index in range(20_000):
        extents.write(index * step, index * step + 4096)
    parts = 0
    for each in segments(extents, PART):
        position = each.start
        while position < each.stop:
            part_bytes = 128 * MIB if each.copied else PART  # as the upload splits them
            position += part_size(part_bytes, position)
            parts += 1
    assert parts <= MAX_PARTS


@given(
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=6),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=3),
    st.integers(-1, 60),
    st.booleans(),
)
def test_every_plan_can_be_uploaded(
    size: int,
    writes: list[tuple[int, int]],
    reads: list[tuple[int, int]],
    cut: int,
    equal: bool,
) -> None:
    """Segments cover the file in order, copies are unchanged, only the last part may be small."""
    extents = Extents(size * MIB)
    if cut >= 0:
        extents.truncate(cut * MIB)
    for start, length in reads:
        for first, last in extents.missing(start * MIB, (start + length) * MIB):
            extents.fetched(first, last)
    for start, length in writes:
        extents.write(start * MIB, (start + length) * MIB)
    found = segments(extents, PART, PART if equal else None)
    position = 0
    for each in found:
        assert each.start == position < each.stop
        position = each.stop
        if each.copied:
            covering = [gap for gap in extents.unchanged() if gap[0] <= each.start < gap[1]]
            assert covering
            assert covering[0][1] >= each.stop
            missing = sum(b - a for a, b in extents.missing(each.start, each.stop))
            assert equal or each.stop - each.start + missing >= WORTH_BYTES
        if equal:
            assert each.start % PART == 0
        elif each.copied or each != found[-1]:
            tail = (each.stop - each.start) % PART
            assert each.stop - each.start >= MIN_PART_BYTES
            assert each.copied or tail == 0 or tail >= MIN_PART_BYTES
    assert position == extents.size_bytes
    assert all(one.copied != two.copied for one, two in itertools.pairwise(found))
