"""Access patterns of real programs: neither sequential nor random.

If a pattern has several streams, `alone` reads the same streams in the same steps, one stream
after another. Together they should be nearly as fast.
"""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench.objects import (
    KIB,
    LARGE,
    LARGE_BYTES,
    MANY,
    MANY_BYTES,
    MIB,
    QUARTER_BYTES,
    QUARTERS,
)
from bench.patterns import (
    PAGE_BYTES,
    Piece,
    at_random,
    backwards,
    in_random_turn,
    in_turn,
    parquet,
    pieces,
    strides,
    tensors,
    zip_archive,
)
from bench.reading import Work, opened
from bench.workloads import Workload, listed, total

ZIP_MEMBERS = 400
STREAM_BYTES = 64 * MIB
RUN_BYTES = 8 * MIB
STEP_BYTES = 128 * KIB
RUN_STEP_BYTES = 64 * KIB
MAPPED_PAGES = 500

#: Streams of the large file, far from each other.
TWO = [list(pieces(start, start + STREAM_BYTES, STEP_BYTES)) for start in (0, LARGE_BYTES // 2)]
SIXTEEN = [
    list(pieces(start, start + RUN_BYTES, RUN_STEP_BYTES))
    for start in range(0, LARGE_BYTES, LARGE_BYTES // 16)
]


def in_order(folder: Path, *, key: str = LARGE, order: Sequence[Piece]) -> Work:
    """Read the given pieces of one file, in order."""
    work = Work()
    with opened(folder, key, work) as source:
        source.read_all(order)
    return work


def zip_members(folder: Path) -> Work:
    """Read an archive's directory, then its members; each is one operation."""
    work = Work()
    directory, members = zip_archive(QUARTER_BYTES, seed=1)
    with opened(folder, QUARTERS[1], work) as source:
        source.read_all(directory)
        for member in members[:ZIP_MEMBERS]:
            with work.operation():
                source.read_all(member)
    return work


def one_by_one(folder: Path, *, streams: Iterable[Sequence[Piece]]) -> Work:
    """Read one stream after another, each to its end and on its own descriptor."""
    return total([in_order(folder, order=stream) for stream in streams])


def in_threads(folder: Path, *, streams: Sequence[Sequence[Piece]]) -> Work:
    """Read streams of one descriptor, a thread for each."""
    works = [Work() for _ in streams]
    with (
        opened(folder, LARGE, Work()) as source,
        ThreadPoolExecutor(len(streams)) as pool,
    ):
        sources = [source.with_work(work) for work in works]
        list(pool.map(lambda one, stream: one.read_all(stream), sources, streams))
    return total(works)


def mapped(folder: Path, *, order: Iterable[Piece]) -> Work:
    """Touch the pages of a mapped file, piece by piece; each is one operation."""
    work = Work()
    with opened(folder, QUARTERS[2], work) as source:
        memory = source.mapped()
    for piece in order:
        with work.operation():
            memory.touch(piece)
    return work


def many_handles(folder: Path, *, at_once: bool) -> Work:
    """Open 64 files and read them: one after another, or one step of each in turn."""
    work = Work()
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(opened(folder, key, work)) for key in listed(folder, MANY)]
        streams = [
            [(source, piece) for piece in pieces(0, MANY_BYTES, STEP_BYTES)] for source in sources
        ]
        for source, piece in in_turn(streams) if at_once else itertools.chain(*streams):
            source.read(piece)
    return work


def a_little_of_each(folder: Path) -> Work:
    """Open each file, read 4 KiB at its start, close it."""
    work = Work()
    for key in listed(folder, MANY):
        with work.operation(), opened(folder, key, work) as source:
            source.read((0, 4 * KIB))
    return work


def programs() -> list[Workload]:
    """Return the workloads of this module, in the order of the table."""
    return [
        Workload(
            "parquet",
            "the footer, then 30 column chunks of 1 to 4 MiB, ascending with gaps",
            "bytes",
            partial(in_order, key=QUARTERS[0], order=list(parquet(QUARTER_BYTES, seed=1))),
        ),
        Workload(
            "zip",
            "the directory at the end, then 400 members of 10 to 200 KiB in random order",
            "operations",
            zip_members,
        ),
        Workload(
            "strides",
            "64 KiB of each MiB of 512 MiB",
            "bytes",
            partial(in_order, order=list(strides(512 * MIB, 64 * KIB, MIB))),
        ),
        Workload(
            "backwards",
            "128 MiB in blocks of 256 KiB, from the end of a file",
            "bytes",
            partial(
                in_order,
                order=list(backwards(LARGE_BYTES - 128 * MIB, LARGE_BYTES, 256 * KIB)),
            ),
        ),
        Workload(
            "two streams",
            "one thread, one descriptor, two places in turn, 64 MiB each",
            "bytes",
            partial(in_order, order=list(in_turn(TWO))),
            alone=partial(one_by_one, streams=TWO),
        ),
        Workload(
            "two threads",
            "the same by two threads",
            "bytes",
            partial(in_threads, streams=TWO),
            alone=partial(one_by_one, streams=TWO),
        ),
        Workload(
            "sixteen runs",
            "one descriptor, 16 places in random turn, 8 MiB each in blocks of 64 KiB",
            "bytes",
            partial(in_order, order=list(in_random_turn(SIXTEEN, seed=1))),
            alone=partial(one_by_one, streams=SIXTEEN),
        ),
        Workload(
            "mapped",
            "a mapped file of 256 MiB, every page in order",
            "bytes",
            partial(mapped, order=list(pieces(0, QUARTER_BYTES, MIB))),
        ),
        Workload(
            "mapped tensors",
            "the same in tensors of 256 KiB to 2 MiB in random order",
            "bytes",
            partial(mapped, order=tensors(QUARTER_BYTES, seed=1)),
        ),
        Workload(
            "mapped pages",
            "500 pages of it at random",
            "operations",
            partial(
                mapped,
                order=list(at_random(QUARTER_BYTES, PAGE_BYTES, MAPPED_PAGES, seed=1)),
            ),
        ),
        Workload(
            "64 handles",
            "64 open files of 4 MiB, 128 KiB of each in turn",
            "bytes",
            partial(many_handles, at_once=True),
            alone=partial(many_handles, at_once=False),
        ),
        Workload(
            "a little",
            "open 64 files of 4 MiB, read 4 KiB of each, close",
            "operations",
            a_little_of_each,
        ),
    ]
