"""Reads of real programs: offsets and sizes as the kernel passes them, in whole pages.

All are so long that their beginning and end do not determine their cost.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest
from _pytest.mark import ParameterSet

from bench.objects import KIB, MIB
from bench.patterns import PAGE_BYTES, Piece, backwards, in_random_turn, in_turn, pieces
from tests.soak import TIMES, seeds

GIB = 1 << 30
#: How much longer the longest patterns are in `make soak`.
LONGER = min(TIMES, 4)


def strided(begin: int, count: int, size: int, distance: int) -> Iterator[Piece]:
    """Yield `count` reads, each `distance` after (or before) the previous one."""
    for index in range(count):
        yield begin + index * distance, size


def at_random(begin: int, stop: int, count: int, size: int, seed: int) -> Iterator[Piece]:
    """Yield reads at random pages."""
    random_ = random.Random(seed)
    for _ in range(count):
        yield random_.randrange(begin // PAGE_BYTES, (stop - size) // PAGE_BYTES) * PAGE_BYTES, size


def jittered(reads: Iterator[Piece], places: float, seed: int) -> Iterator[Piece]:
    """Yield the same reads, each up to this many places late: several threads read ahead."""
    random_ = random.Random(seed)
    numbered = ((index + random_.random() * places, read) for index, read in enumerate(reads))
    for _, read in sorted(numbered):
        yield read


def parquet(
    size_bytes: int,
    seed: int,
    *,
    read_bytes: int = 256 * KIB,
    chunk_bytes: tuple[int, int] = (1 * MIB, 4 * MIB),
    gap_bytes: int = 8 * MIB,
) -> Iterator[Piece]:
    """Yield the footer, then column chunks from front to back, with gaps for other columns."""
    random_ = random.Random(seed)
    yield size_bytes - 64 * KIB, 64 * KIB
    position = PAGE_BYTES
    while True:
        position += random_.randrange(gap_bytes) // PAGE_BYTES * PAGE_BYTES
        stop = position + random_.randrange(*chunk_bytes) // PAGE_BYTES * PAGE_BYTES + PAGE_BYTES
        if stop > size_bytes - MIB:
            return
        yield from pieces(position, stop, read_bytes)
        position = stop


def columns(
    size_bytes: int,
    chunks: tuple[int, ...],
    group_chunks: int,
    chunk_bytes: int,
    *,
    beyond_bytes: int = 0,
) -> Iterator[Piece]:
    """Yield the footer, then some columns of each row group; all chunks have the same size.

    The kernel reads `beyond_bytes` more of each chunk.
    """
    yield size_bytes - 64 * KIB, 64 * KIB
    for group in range((size_bytes - MIB) // (group_chunks * chunk_bytes)):
        for chunk in chunks:
            start = (group * group_chunks + chunk) * chunk_bytes
            stop = start + chunk_bytes + beyond_bytes
            yield start - start % PAGE_BYTES, stop - start + start % PAGE_BYTES + -stop % PAGE_BYTES


def by_threads(chunks: Iterator[Piece], threads: int) -> Iterator[Piece]:
    """Yield the first piece of each thread's first chunk, then one chunk after another."""
    pieces_of = [pieces(offset, offset + size, 128 * KIB) for offset, size in chunks]
    first = [next(chunk) for chunk in pieces_of[:threads]]
    yield from first
    for chunk in pieces_of:
        yield from chunk


def zipped(
    size_bytes: int,
    seed: int,
    *,
    members: int = 250 * LONGER,
    member_bytes: tuple[int, int] = (4 * KIB, 600 * KIB),
    read_bytes: int = 128 * KIB,
) -> Iterator[Piece]:
    """Yield the central directory, then members in any order, each from start to end."""
    random_ = random.Random(seed)
    yield size_bytes - 64 * KIB, 64 * KIB
    for _ in range(members):
        pages = random_.randrange(*member_bytes) // PAGE_BYTES + 1
        position = random_.randrange(size_bytes // PAGE_BYTES - pages) * PAGE_BYTES
        yield from pieces(position, position + pages * PAGE_BYTES, read_bytes)


def mapped_in_order(size_bytes: int, around_bytes: int) -> Iterator[Piece]:
    """Yield the reads of page faults in order; nothing precedes the first page."""
    half = around_bytes // 2
    yield 0, half
    yield from pieces(half, size_bytes, half)


def mapped_at_random(size_bytes: int, around_bytes: int, count: int, seed: int) -> Iterator[Piece]:
    """Yield the reads of page faults at random: the pages around, except for cached ones."""
    cached: set[int] = set()  # pages
    for offset, _ in at_random(0, size_bytes, count, PAGE_BYTES, seed):
        first = max(offset - around_bytes // 2, 0) // PAGE_BYTES
        pages = range(first, min(first + around_bytes // PAGE_BYTES, size_bytes // PAGE_BYTES))
        begin = None
        for page in [*pages, None]:
            missing = page is not None and page not in cached
            if missing and begin is None:
                begin = page
            elif not missing and begin is not None:
                stop = pages.stop if page is None else page
                yield begin * PAGE_BYTES, (stop - begin) * PAGE_BYTES
                begin = None
        cached.update(pages)


@dataclass(frozen=True)
class Pattern:
    """The reads of a program on one open object.

    `reads` yields them, random ones from a seed. `most` limits the bytes fetched per byte read.
    """

    size_bytes: int
    reads: Callable[[int], Iterator[Piece]]
    most: float

    @property
    def depends_on_seed(self) -> bool:
        """Whether any of its reads depend on the seed, judged by the first reads."""
        one, other = (list(itertools.islice(self.reads(seed), 300)) for seed in (1, 2))
        return one != other


def cases(names: Iterable[str]) -> list[ParameterSet]:
    """Return the patterns with these names, and their seeds, as test parameters."""
    return [
        pytest.param(name, seed, id=f"{name}-{which}")
        for name in names
        for which, seed in seeds().items()
        if which == "seed1" or PATTERNS[name].depends_on_seed
    ]


#: Sixteen sorted runs that are merged; each is in a place of its own.
RUNS = [(index * GIB, index * GIB + LONGER * 32 * MIB) for index in range(16)]

#: The most bytes fetched per byte read, for random reads and for others.
RANDOM_COST, COST = 1.1, 1.3

PATTERNS: dict[str, Pattern] = {
    "random 4K": Pattern(
        4 * GIB, lambda seed: at_random(0, 4 * GIB, 1000, 4 * KIB, seed), RANDOM_COST
    ),
    "random 128K": Pattern(
        4 * GIB,
        lambda seed: at_random(0, 4 * GIB, 1000, 128 * KIB, seed),
        RANDOM_COST,
    ),
    "random 1M": Pattern(4 * GIB, lambda seed: at_random(0, 4 * GIB, 1000, MIB, seed), RANDOM_COST),
    "random in a small object": Pattern(
        64 * MIB,
        lambda seed: at_random(0, 64 * MIB, 1000, 4 * KIB, seed),
        RANDOM_COST,
    ),
    "random 1M, in four": Pattern(
        4 * GIB,
        lambda seed: (
            piece
            for offset, size in at_random(0, 4 * GIB, 300, MIB, seed)
            for piece in pieces(offset, offset + size, 256 * KIB)
        ),
        RANDOM_COST,
    ),
    "mapped, at random": Pattern(
        4 * GIB,
        lambda seed: mapped_at_random(4 * GIB, MIB, 1000, seed),
        RANDOM_COST,
    ),
    "mapped, at random, 256K around": Pattern(
        4 * GIB,
        lambda seed: mapped_at_random(4 * GIB, 256 * KIB, 1000, seed),
        RANDOM_COST,
    ),
    "mapped, in order": Pattern(GIB, lambda seed: mapped_in_order(GIB, 256 * KIB), COST),
    "sequential": Pattern(GIB, lambda seed: pieces(0, GIB, 128 * KIB), COST),
    "sequential from the middle": Pattern(4 * GIB, lambda seed: pieces(GIB, 2 * GIB, MIB), COST),
    "out of order, 1M": Pattern(GIB, lambda seed: jittered(pieces(0, GIB, MIB), 2.5, seed), COST),
    "out of order, 128K": Pattern(
        GIB,
        lambda seed: jittered(pieces(0, GIB, 128 * KIB), 3, seed),
        COST,
    ),
    "out of order from the middle": Pattern(
        4 * GIB,
        lambda seed: jittered(pieces(GIB, 2 * GIB, MIB), 2.5, seed),
        COST,
    ),
    "backward": Pattern(GIB, lambda seed: backwards(0, GIB, 128 * KIB), COST),
    "backward, odd size": Pattern(GIB + 777, lambda seed: backwards(0, GIB + 777, 64 * KIB), COST),
    "backward from the middle": Pattern(
        4 * GIB, lambda seed: backwards(GIB, 2 * GIB, 256 * KIB), COST
    ),
    "stride 64K of 1M": Pattern(4 * GIB, lambda seed: strided(0, 1000, 64 * KIB, MIB), COST),
    "stride 4K of 64K": Pattern(4 * GIB, lambda seed: strided(GIB, 1000, 4 * KIB, 64 * KIB), COST),
    "stride 1M of 4M": Pattern(4 * GIB, lambda seed: strided(0, 1000, MIB, 4 * MIB), COST),
    "stride 256K of 512K": Pattern(
        4 * GIB, lambda seed: strided(GIB, 1000, 256 * KIB, 512 * KIB), COST
    ),
    "stride 256K of 1M, from the start": Pattern(
        4 * GIB,
        lambda seed: strided(0, 1000, 256 * KIB, MIB),
        COST,
    ),
    "stride 64K of 1M, backward": Pattern(
        4 * GIB,
        lambda seed: strided(4 * GIB - MIB, 1000, 64 * KIB, -MIB),
        COST,
    ),
    "stride 512K of 4M, in four": Pattern(
        4 * GIB,
        lambda seed: (
            piece
            for offset, size in strided(0, 300, 512 * KIB, 4 * MIB)
            for piece in pieces(offset, offset + size, 128 * KIB)
        ),
        COST,
    ),
    "two streams": Pattern(
        4 * GIB,
        lambda seed: in_turn(
            [pieces(begin, begin + 512 * MIB, 128 * KIB) for begin in (0, 2 * GIB)]
        ),
        COST,
    ),
    "two streams from anywhere": Pattern(
        4 * GIB,
        lambda seed: in_random_turn(
            [pieces(begin, begin + 512 * MIB, MIB) for begin in (GIB, 2 * GIB)], seed
        ),
        COST,
    ),
    "sixteen in turns": Pattern(
        16 * GIB,
        lambda seed: in_turn([pieces(*run, 128 * KIB) for run in RUNS]),
        COST,
    ),
    "sixteen merged": Pattern(
        16 * GIB,
        lambda seed: in_random_turn([pieces(*run, 64 * KIB) for run in RUNS], seed),
        COST,
    ),
    "sixteen merged, 1M": Pattern(
        16 * GIB,
        lambda seed: in_random_turn([pieces(*run, MIB) for run in RUNS], seed),
        COST,
    ),
    "parquet": Pattern(LONGER * GIB, lambda seed: parquet(LONGER * GIB, seed), COST),
    "parquet, 1M reads": Pattern(
        LONGER * GIB, lambda seed: parquet(LONGER * GIB, seed, read_bytes=MIB), COST
    ),
    "parquet, large chunks": Pattern(
        LONGER * 4 * GIB,
        lambda seed: parquet(
            LONGER * 4 * GIB, seed, chunk_bytes=(8 * MIB, 64 * MIB), gap_bytes=128 * MIB
        ),
        COST,
    ),
    "parquet, small chunks": Pattern(
        GIB,
        lambda seed: parquet(GIB, seed, chunk_bytes=(4 * KIB, MIB), gap_bytes=2 * MIB),
        COST,
    ),
    "parquet, nearly all columns": Pattern(
        GIB,
        lambda seed: parquet(GIB, seed, gap_bytes=8 * KIB),
        COST,
    ),
    "parquet, three of forty columns": Pattern(
        256 * MIB,
        lambda seed: columns(256 * MIB, (3, 17, 31), 40, 100_077),
        RANDOM_COST,
    ),
    "zip": Pattern(4 * GIB, lambda seed: zipped(4 * GIB, seed), COST),
    "zip, small members": Pattern(
        4 * GIB,
        lambda seed: zipped(4 * GIB, seed, members=1000, member_bytes=(4 * KIB, 64 * KIB)),
        RANDOM_COST,
    ),
    "zip, large members": Pattern(
        16 * GIB,
        lambda seed: zipped(16 * GIB, seed, members=100, member_bytes=(MIB, 16 * MIB)),
        COST,
    ),
}
