"""Guesses of the positions where the next pages of a directory begin."""

import bisect
import itertools
import random
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mountpoint.listing.split_points import guess
from mountpoint.listing.tree import is_name

PAGE = 1000


def positions(names: list[bytes], page_size: int = PAGE) -> Iterator[bytes]:
    """Yield the positions that follow from the sorted names of the first page."""
    found = guess(names[:page_size])
    position: bytes | None = names[:page_size][-1]
    while found is not None and position is not None:
        position = found.after(position)
        if position is not None:
            yield position


def sizes(names: list[bytes]) -> list[int]:
    """Return the numbers of names between the positions, from the end of the first page on."""
    cuts = [PAGE, *(bisect.bisect(names, position) for position in positions(names))]
    return [stop - start for start, stop in itertools.pairwise(cuts)]


def hashes(count: int) -> list[bytes]:
    chance = random.Random(4)
    return sorted(
        b"%s.bin" % uuid.UUID(int=chance.getrandbits(128)).hex.encode() for _ in range(count)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        [b"f%04d" % number for number in range(10_000)],
        [b"%08d.jpeg" % number for number in range(20_000)],
        [f"日-{number}.txt".encode() for number in range(50_000, 70_000)],
        [b"part-%05d-%s.parquet" % (number, b"%x" % (number * 7919)) for number in range(9000)],
        [b"block.%06x" % number for number in range(10_000)],
        [b".hidden", b"README", *(b"f%04d" % number for number in range(8000))],
    ],
    ids=["counter", "wide", "unicode", "parts", "hex", "others first"],
)
def test_counters_give_whole_pages(names: list[bytes]) -> None:
    """Counters: between two positions is a page minus one name, up to the last position."""
    found = sizes(names)
    assert len(found) >= 7
    whole = [size for size in found if size > 0]
    assert all(PAGE - 5 <= size < PAGE for size in whole[:-1])


def test_a_counter_that_is_full_ends() -> None:
    """Beyond the largest number with these digits there is no guess."""
    names = [b"f%04d" % number for number in range(10_000)]
    assert list(positions(names))[-1] == b"f9981"


@pytest.mark.slow
def test_hashes_leave_room() -> None:
    """Random names: hardly a range is larger than a page, and none is half empty."""
    for count in (5_000, 20_000, 300_000):
        found = sizes(hashes(count))[:-1]
        assert sum(size >= PAGE for size in found) <= 1 + len(found) // 10
        assert sum(found) / len(found) > 0.75 * PAGE


def test_counters_without_leading_zeros() -> None:
    """`f1`, `f10`, `f100`, `f1000`: in byte order they are as even as others."""
    names = sorted(b"f%d" % number for number in range(10_000))
    assert all(PAGE * 0.7 <= size < PAGE for size in sizes(names))


@pytest.mark.parametrize(
    "names", [[], [b"a"], [b"-", b"_"], ["ü".encode(), "ä".encode()], [b"a\xff1", b"a\xff2"]]
)
def test_nothing_to_guess_from(names: list[bytes]) -> None:
    """A single name, only signs, or bytes that S3 would refuse: no guess."""
    assert guess(sorted(names)) is None


NAMES = st.binary(min_size=1, max_size=9) | st.text(min_size=1, max_size=6).map(str.encode)
COUNTED = st.builds(
    lambda head, number, tail: head + b"%d" % number + tail,
    st.sampled_from([b"", b"f", b"f0", "ü".encode(), b"z-", b"9"]),
    st.integers(0, 2000),
    st.sampled_from([b"", b".txt", b"a", b"~"]),
)


@given(st.sets((NAMES | COUNTED).filter(is_name), min_size=1, max_size=40), st.integers(1, 40))
@example({b"9", b"99"}, 2)
@example({b"a9~", b"a8"}, 2)
def test_positions_of_any_names(names: set[bytes], page_size: int) -> None:
    """Positions ascend from the page's last name, have no slash, and are UTF-8 if names are."""
    page = sorted(names)[:page_size]
    last = page[-1]
    for count, position in enumerate(positions(page, page_size)):
        assert position > last
        assert b"/" not in position
        position.decode()
        last = position
        if count > 50:
            break
