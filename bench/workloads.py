"""Plain workloads: files from start to end, at random, and many files. `programs` has the others.

A workload is a function that gets the mount's folder, reads files, and returns what it did. The
caller times it. The caches are cold at its start, unless it is `warm`.
"""

import multiprocessing
import os
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from bench.objects import (
    FOLDER,
    KIB,
    LARGE,
    LARGE_BYTES,
    MEDIUM,
    MIB,
    QUARTER_BYTES,
    QUARTERS,
    SIXTEENTH_BYTES,
    SIXTEENTHS,
    SIZES,
    SMALL,
    TREE,
    WrongBytes,
)
from bench.patterns import Piece, at_random, pieces
from bench.reading import Work, opened

Reader = Callable[[Path], Work]

RANDOM_READS = 1000
RANDOM_READS_EACH = 100
#: The mount uses a listing for one second: the number of files to open after each listing.
FILES_PER_LISTING = 20


@dataclass(frozen=True)
class Workload:
    """One line of the table.

    `unit` says what its rate counts. If `run` reads several streams together, `alone` reads the
    same streams one after another.
    """

    name: str
    about: str
    unit: Literal["bytes", "operations"]
    run: Reader
    warm: bool = False
    alone: Reader | None = None


def sequential(folder: Path, *, flags: int = 0) -> Work:
    """Read the large file from start to end in 1 MiB reads."""
    work = Work()
    with opened(folder, LARGE, work, flags=flags) as source:
        source.read_all(pieces(0, LARGE_BYTES, MIB))
    return work


def four_files(folder: Path) -> Work:
    """Read four files in parallel, from start to end."""
    order = list(pieces(0, QUARTER_BYTES, 256 * KIB))
    return in_processes(folder, [(key, order, 0) for key in QUARTERS])


def sixteen_files(folder: Path, readers: int, flags: int) -> Work:
    """Read sixteen files by this many processes, in 1 MiB reads, each from start to end."""
    order = list(pieces(0, SIXTEENTH_BYTES, MIB))
    return in_processes(folder, [(key, order, flags) for key in SIXTEENTHS], readers)


def random_reads(folder: Path, size: int) -> Work:
    """Read blocks of the large file at random places, one after another."""
    work = Work()
    with opened(folder, LARGE, work, flags=os.O_DIRECT) as source:
        source.time_each(at_random(LARGE_BYTES, size, RANDOM_READS, seed=1))
    return work


def random_in_four(folder: Path) -> Work:
    """Read blocks of 1 MiB at random places of four files in parallel."""
    orders = [
        list(at_random(QUARTER_BYTES, MIB, RANDOM_READS_EACH, seed))
        for seed, _ in enumerate(QUARTERS)
    ]
    jobs = [(key, order, os.O_DIRECT) for key, order in zip(QUARTERS, orders, strict=True)]
    return in_processes(folder, jobs)


def small_files(folder: Path, threads: int) -> Work:
    """List the folder of small files and read each one completely."""
    keys = listed(folder, SMALL)
    if threads > 1:
        random.Random(1).shuffle(keys)
    with ThreadPoolExecutor(threads) as pool:
        return total(pool.map(partial(whole_file, folder), keys))


def medium_files(folder: Path) -> Work:
    """Read files of a few MiB completely, one after another."""
    return total(whole_file(folder, key) for key in listed(folder, MEDIUM))


def first_byte(folder: Path) -> Work:
    """List the folder, then open files and read their first byte."""
    work = Work()
    for start in range(0, 100, FILES_PER_LISTING):
        for key in listed(folder, SMALL)[start : start + FILES_PER_LISTING]:
            with work.operation(), opened(folder, key, work) as source:
                source.read((0, 1))
    return work


def walk(folder: Path) -> Work:
    """Walk the tree and stat every file."""
    work = Work()
    for base, _, names in os.walk(folder / "tree"):
        for name in names:
            size = os.stat(os.path.join(base, name)).st_size
            if size != SIZES[os.path.relpath(os.path.join(base, name), folder)]:
                raise WrongBytes(f"{base}/{name} has {size} bytes")
            work.operations += 1
    if work.operations != len(TREE):
        raise WrongBytes(f"the tree has {work.operations} files instead of {len(TREE)}")
    return work


def list_folder(folder: Path) -> Work:
    """List a large folder, without stat of its files."""
    return Work(operations=len(listed(folder, FOLDER)))


# -- their parts ---------------------------------------------------------------------------------


def whole_file(folder: Path, key: str) -> Work:
    """Read a file from start to end, as one operation."""
    work = Work()
    with work.operation(), opened(folder, key, work) as source:
        source.read_all(pieces(0, SIZES[key], 256 * KIB))
    return work


def listed(folder: Path, keys: Sequence[str]) -> list[str]:
    """List the folder of these keys, and return its names."""
    parent = os.path.dirname(keys[0])
    found = sorted(f"{parent}/{name}" for name in os.listdir(folder / parent))
    if found != list(keys):
        raise WrongBytes(f"{parent}/ has {len(found)} files, not those that were uploaded")
    return found


def total(works: Iterable[Work]) -> Work:
    """Add up."""
    result = Work()
    for work in works:
        result += work
    return result


def in_processes(
    folder: Path, jobs: Sequence[tuple[str, list[Piece], int]], processes: int = 0
) -> Work:
    """Read several files in parallel, each in its own process: key, ordered pieces, flags.

    `processes` that take turns may be fewer. Threads would wait for each other's GIL.
    """
    with multiprocessing.get_context("fork").Pool(processes or len(jobs)) as pool:
        return total(pool.starmap(_read_timed, [(folder, *job) for job in jobs], chunksize=1))


def _read_timed(folder: Path, key: str, order: list[Piece], flags: int) -> Work:
    work = Work()
    with opened(folder, key, work, flags=flags) as source:
        source.time_each(order)
    return work


def workloads() -> list[Workload]:
    """Return the workloads of this module, in the order of the table."""
    return [
        Workload("sequential", "a file of 1 GiB, in reads of 1 MiB", "bytes", sequential),
        Workload("again", "the same, unchanged, opened again", "bytes", sequential, warm=True),
        Workload(
            "direct",
            "as sequential, with O_DIRECT",
            "bytes",
            partial(sequential, flags=os.O_DIRECT),
        ),
        Workload("four files", "4 processes, 256 MiB each, in order", "bytes", four_files),
        *(
            Workload(
                f"{name} by {readers}",
                f"16 files of 128 MiB by {readers} processes, {name}",
                "bytes",
                partial(sixteen_files, readers=readers, flags=flags),
            )
            for name, flags in (("direct", os.O_DIRECT), ("buffered", 0))
            for readers in (1, 4, 16)
        ),
        Workload(
            "random 4 KiB",
            "1,000 reads of a file of 1 GiB, one after another, O_DIRECT",
            "operations",
            partial(random_reads, size=4 * KIB),
        ),
        Workload(
            "random 128 KiB",
            "the same with larger reads",
            "operations",
            partial(random_reads, size=128 * KIB),
        ),
        Workload(
            "random 1 MiB by 4",
            "4 processes, 100 reads each of a file of 256 MiB, O_DIRECT",
            "operations",
            random_in_four,
        ),
        Workload(
            "small files",
            "list 500 files of 100 KiB and read them, one after another",
            "operations",
            partial(small_files, threads=1),
        ),
        Workload(
            "small by 16",
            "the same in random order by 16 threads",
            "operations",
            partial(small_files, threads=16),
        ),
        Workload("medium files", "40 files of 5 MiB, one after another", "bytes", medium_files),
        Workload(
            "first byte",
            "open and read 1 byte of 100 files, listed just before",
            "operations",
            first_byte,
        ),
        Workload(
            "walk and stat", "1,000 files in 50 directories, stat of each", "operations", walk
        ),
        Workload("list", "the names of 10,000 files in one folder", "operations", list_folder),
    ]
