"""Measure the data cache: `python -m bench.cache`, as root.

Runs each workload on three mounts in turn: without a cache, with an empty one, and with a filled
one. The kernel's caches are dropped before each. Prints rates and CPU, and the rates divided by
those without a cache. Then it measures what limits random reads: the disk alone, and reads of a
mount from memory. At last it times the start of a mount: without a cache, and with many blocks.
"""

import argparse
import contextlib
import hashlib
import mmap
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import measure, objects, run, served
from bench.measure import Process
from mountpoint.cache.blocks._files import CachedVersion
from mountpoint.cache.blocks._format import BLOCK_BYTES
from mountpoint.cache.directory import CacheDirectory
from mountpoint.cache.identity import Identity
from tools import mounting

WORKLOADS = ("sequential", "direct", "random 4 KiB", "small files", "small by 16")
#: Names and versions are known, as in the second epoch of a training.
OPTIONS = ("--metadata-ttl", "300")
#: How long the cache may take to write what was read, and how often it is filled again: blocks are
#: dropped while the disk is busy.
SETTLED_S = 1.0
FILLINGS = 4
BLOCKS = 100_000
#: Open files and reads of `limits`.
LIMIT = 500
LIMIT_READS = 3000
#: The bytes of one checksum in a block (`cache/blocks/_format`).
UNIT_BYTES = 16 << 10
PAGE_BYTES = 4096


def measured(where: Sequence[str], environment: dict[str, str], cache: Path | None, name: str,
    *, fill: bool) -> tuple[float, float]:  # fmt: skip
    """Return the rate and the CPU seconds per unit of a workload on a new mount."""
    workload = run.WORKLOADS[name]
    options = [*OPTIONS, *(["--cache", str(cache)] if cache else [])]
    url, bucket = where
    with served.mounted(url, bucket, environment, options) as (folder, _):
        if fill:
            for _ in range(FILLINGS):
                measure.drop_caches()
                workload.run(folder)
                time.sleep(SETTLED_S)
            return 0.0, 0.0
        pid = mounting.serving_process(folder)
        process = Process(pid)
        measure.drop_caches()
        cpu_s, start_s = process.cpu_seconds(), time.perf_counter()
        work = workload.run(folder)
        seconds = time.perf_counter() - start_s
        cpu_s = process.cpu_seconds() - cpu_s
        units = work.read_bytes / 1e6 if workload.unit == "bytes" else work.operations
        return units / seconds, cpu_s / units


def compare(
    where: tuple[str, str], environment: dict[str, str], name: str, runs: int, disk: Path
) -> str:
    """Return a line of the table. The caches stay on `disk`: ext4 without a journal creates files
    slowly for minutes after others were removed, because it avoids their inodes.
    """
    found: dict[str, list[tuple[float, float]]] = {"none": [], "empty": [], "filled": []}
    for _ in range(runs):
        cache = Path(tempfile.mkdtemp(dir=disk))
        for state, results in found.items():
            if state == "filled":
                measured(where, environment, cache, name, fill=True)
            path = None if state == "none" else cache
            results.append(measured(where, environment, path, name, fill=False))
    unit = "MB/s" if run.WORKLOADS[name].unit == "bytes" else "/s"
    base = statistics.median(rate for rate, _ in found["none"])
    cells = [f"{name:17}"]
    for results in found.values():
        rate = statistics.median(rate for rate, _ in results)
        cpu_ms = statistics.median(cpu_s for _, cpu_s in results) * 1e3
        cells.append(f"{rate:7.0f} {unit:4} x{rate / base:4.2f} {cpu_ms:6.3f} ms CPU")
    return "  ".join(cells)


def limits(where: tuple[str, str], environment: dict[str, str]) -> str:
    """Return how many random reads the disk delivers without a mount, and a mount from memory.

    The disk: the unit of a checksum, from open files of cold blocks. The mount: 4 KiB of a file
    that is in the mount's memory, by a thread that the lane knows.
    """
    url, bucket = where
    order = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="mount-s3-bench-cache-") as cache:
        workload = run.WORKLOADS["direct"]
        measured(where, environment, Path(cache), workload.name, fill=True)
        files = [each for each in Path(cache).rglob("*.*") if each.stat().st_size > BLOCK_BYTES]
        with contextlib.ExitStack() as stack:
            blocks = [stack.enter_context(each.open("rb", 0)).fileno() for each in files[:LIMIT]]
            measure.drop_caches()
            units = BLOCK_BYTES // UNIT_BYTES
            disk = _timed(
                lambda: os.pread(
                    order.choice(blocks), UNIT_BYTES, order.randrange(units) * UNIT_BYTES
                )
            )
    with served.mounted(url, bucket, environment, OPTIONS) as (folder, _):
        name = objects.SMALL[0]
        file = os.open(folder / name, os.O_RDONLY | os.O_DIRECT)
        buffer = mmap.mmap(-1, PAGE_BYTES)
        os.preadv(file, [buffer], 0)
        pages = objects.SIZES[name] // PAGE_BYTES
        memory = _timed(lambda: os.preadv(file, [buffer], order.randrange(pages) * PAGE_BYTES))
        os.close(file)
    return f"random reads: the disk alone {disk}; a mount from memory {memory}"


def _timed(read: Callable[[], object]) -> str:
    seconds = []
    for _ in range(LIMIT_READS):
        start_s = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start_s)
    return f"{LIMIT_READS / sum(seconds):.0f} /s (p50 {statistics.median(seconds) * 1e3:.3f} ms)"


def starts(where: tuple[str, str], environment: dict[str, str], runs: int) -> str:
    """Return the seconds until a mount serves: without a cache, with an empty one, with many
    blocks; with cold caches of the kernel, and with warm ones.
    """
    url, bucket = where
    found: dict[str, dict[str, list[float]]] = {"cold": {}, "warm": {}}
    with (
        tempfile.TemporaryDirectory(prefix="mount-s3-bench-cache-") as empty,
        tempfile.TemporaryDirectory(prefix="mount-s3-bench-cache-") as full,
    ):
        _fill(full, bucket)
        os.sync()  # the disk would be busy with these files meanwhile
        states = {"none": [], "empty": ["--cache", empty], f"{BLOCKS:,} blocks": ["--cache", full]}
        for _ in range(runs):
            for caches, results in found.items():
                for state, options in states.items():
                    if caches == "cold":
                        measure.drop_caches()
                    start_s = time.perf_counter()
                    with served.mounted(url, bucket, environment, options):
                        seconds = time.perf_counter() - start_s
                    results.setdefault(state, []).append(seconds)
    lines = [
        f"{caches}: "
        + ", ".join(f"{state} {statistics.median(each):.2f} s" for state, each in results.items())
        for caches, results in found.items()
    ]
    return "\n".join(["a mount serves after, by the kernel's caches and the data cache:", *lines])


def _fill(cache: str, bucket: str) -> None:
    """Write many small blocks to a cache."""
    directory = CacheDirectory.open(cache)
    for number in range(BLOCKS):
        data = hashlib.blake2b(str(number).encode()).digest()
        identity = Identity("localhost", bucket, f'"{number}"', len(data), b"key")
        version = CachedVersion(directory.store, identity.path.encode(), identity.text, len(data))
        temporary = directory.temporary()
        version.write(0, data, temporary)
        version.publish(0, temporary)
    directory.recount()


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench.cache", description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", default=list(WORKLOADS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--disk",
        metavar="DIRECTORY",
        help="where the caches are: a new directory at the top of a file system has had no files "
        "removed (default: that of temporary files)",
    )
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it must run as root, to drop the kernel's caches")
    with (
        served.embedded(sum(objects.SIZES.values())) as server,
        tempfile.TemporaryDirectory(prefix="mount-s3-bench-cache-", dir=arguments.disk) as disk,
    ):
        connections = objects.UPLOAD_THREADS
        objects.fill(server.client(max_pool_connections=connections), server.bucket)
        where = server.endpoint_url, server.bucket
        print("workload           without a cache | empty cache | filled cache", flush=True)
        for name in arguments.workloads:
            line = compare(where, server.environment, name, arguments.runs, Path(disk))
            print(line, flush=True)
        print(limits(where, server.environment), flush=True)
        print(starts(where, server.environment, arguments.runs), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
