"""What programs do: files from start to end, at random, many of them. `programs` has the rest.

A workload is a function of the mount's folder that reads, and returns what it did. It is timed
from outside; the caches are cold when it begins, unless it is `warm`.
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
    SIZES,
    SMALL,
    TREE,
    WrongBytes,
)
from bench.patterns import Piece, at_random, pieces
from bench.reading import Work, opened

PageChain = Callable[[Path], Work]

RANDOM_READS = 1000
RANDOM_READS_EACH = 100
#: The mount knows a listing for a second: first bytes are asked for in so many files after each.
FILES_PER_LISTING = 20


@dataclass(frozen=True)
class Workload:
    """One line of the table.

    `unit` says what its rate counts. `alone` reads the same streams one by one, where `run`
    reads several together.
    """

    name: str
    about: str
    unit: Literal["bytes", "operations"]
    run: PageChain
    warm: bool = False
    alone: PageChain | None = None


def sequential(folder: Path, *, flags: int = 0) -> Work:
    """Read the large file from start to end in 1 MiB reads."""
    work = Work()
    with opened(folder, LARGE, work, flags=flags) as source:
        source.read_all(pieces(0, LARGE_BYTES, MIB))
    return work


def four_files(folder: Path) -> Work:
    """Read four files from start to end at once."""
    order = list(pieces(0, QUARTER_BYTES, 256 * KIB))
    return in_processes(folder, [(key, order, 0) for key in QUARTERS])


def random_reads(folder: Path, size: int) -> Work:
    """Read blocks of the large file at random places, one after another."""
    work = Work()
    with opened(folder, LARGE, work, flags=os.O_DIRECT) as source:
        source.time_each(at_random(LARGE_BYTES, size, RANDOM_READS, seed=1))
    return work


def random_in_four(folder: Path) -> Work:
    """Read blocks of 1 MiB at random places of four files at once."""
    orders = [
        list(at_random(QUARTER_BYTES, MIB, RANDOM_READS_EACH, seed))
        for seed, _ in enumerate(QUARTERS)
    ]
    jobs = [(key, order, os.O_DIRECT) for key, order in zip(QUARTERS, orders, strict=True)]
    return in_processes(folder, jobs)


def small_files(folder: Path, threads: int) -> Work:
    """List the folder of small files and read each of them whole."""
    keys = listed(folder, SMALL)
    if threads > 1:
        random.Random(1).shuffle(keys)
    with ThreadPoolExecutor(threads) as pool:
        return total(pool.map(partial(whole_file, folder), keys))


def medium_files(folder: Path) -> Work:
    """Read files of some MiB whole, one after another."""
    return total(whole_file(folder, key) for key in listed(folder, MEDIUM))


def first_byte(folder: Path) -> Work:
    """Open files and read their first byte, just after the folder was listed."""
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
        raise WrongBytes(f"the tree has {work.operations} files in place of {len(TREE)}")
    return work


def list_folder(folder: Path) -> Work:
    """List a large folder, without looking at its files."""
    return Work(operations=len(listed(folder, FOLDER)))


# -- their parts ---------------------------------------------------------------------------------


def whole_file(folder: Path, key: str) -> Work:
    """Read a file from start to end, as one operation."""
    work = Work()
    with work.operation(), opened(folder, key, work) as source:
        source.read_all(pieces(0, SIZES[key], 256 * KIB))
    return work


def listed(folder: Path, keys: Sequence[str]) -> list[str]:
    """List the folder that these keys are in, and return what is there."""
    parent = os.path.dirname(keys[0])
    found = sorted(f"{parent}/{name}" for name in os.listdir(folder / parent))
    if found != list(keys):
        raise WrongBytes(f"{parent}/ has {len(found)} files, not those that were put")
    return found


def total(works: Iterable[Work]) -> Work:
    """Add up."""
    result = Work()
    for work in works:
        result += work
    return result


def in_processes(folder: Path, jobs: Sequence[tuple[str, list[Piece], int]]) -> Work:
    """Read several files at once: key, pieces in their order, flags; a process for each.

    Processes, because threads of Python would wait for each other.
    """
    with multiprocessing.get_context("fork").Pool(len(jobs)) as pool:
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
        Workload(
            "medium files", "40 files of 5 MiB whole, one after another", "bytes", medium_files
        ),
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
