"""Measure writes through a mount: `python -m bench.writing`.

Mounts a bucket of SeaweedFS on loopback, or of a running server (`--endpoint-url`, with
credentials in the usual variables), and writes as programs do: one large file, four in parallel,
small files one after another, files that are renamed, copied and moved, or appended to. Prints a
line for each: rate, CPU of the mounting process, requests, peak memory.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import served
from bench.measure import Process
from tools import mounting
from tools.fuse_check import why_no_fuse

MIB = 1 << 20
LARGE_BYTES = 1 << 30
SMALL_BYTES, SMALL_FILES = 10_000, 200
OPTIONS = ["--allow-overwrite", "--allow-delete", "--allow-rename", "--allow-append"]

#: A workload writes below a new folder of the mount, and returns bytes and operations.
Workload = Callable[[Path], tuple[int, int]]


def large(folder: Path, name: str = "large") -> tuple[int, int]:
    """Write 1 GiB with 1 MiB writes."""
    data = os.urandom(MIB)
    with (folder / name).open("wb", buffering=0) as file:
        for _ in range(LARGE_BYTES // MIB):
            file.write(data)
    return LARGE_BYTES, 1


def four(folder: Path) -> tuple[int, int]:
    """Write 4 files of 1 GiB in parallel."""
    threads = [threading.Thread(target=large, args=(folder, str(index))) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 4 * LARGE_BYTES, 4


def small(folder: Path) -> tuple[int, int]:
    """Write 200 files of 10 kB, one after another."""
    data = os.urandom(SMALL_BYTES)
    for index in range(SMALL_FILES):
        (folder / str(index)).write_bytes(data)
    return SMALL_FILES * SMALL_BYTES, SMALL_FILES


def unclosed(folder: Path) -> tuple[int, int]:
    """Write 200 files of 1 KB and rename each before it is closed."""
    for index in range(SMALL_FILES):
        with (folder / "temporary").open("wb", buffering=0) as file:
            file.write(bytes(1000))
            (folder / "temporary").rename(folder / str(index))
    return SMALL_FILES * 1000, SMALL_FILES


def copies(folder: Path) -> tuple[int, int]:
    """Copy a file of 1 KB and rename the copy, 200 times."""
    (folder / "a").write_bytes(bytes(1000))
    for index in range(SMALL_FILES):
        subprocess.run(["cp", "a", "b"], cwd=folder, check=True)
        subprocess.run(["mv", "b", f"c{index}"], cwd=folder, check=True)
    return SMALL_FILES * 1000, SMALL_FILES


def appends(folder: Path) -> tuple[int, int]:
    """Append 1 KB to each of 200 files of 1 KB."""
    for index in range(SMALL_FILES):
        (folder / str(index)).write_bytes(bytes(1000))
        with (folder / str(index)).open("ab", buffering=0) as file:
            file.write(bytes(1000))
    return SMALL_FILES * 2000, SMALL_FILES


WORKLOADS: dict[str, Workload] = {
    "write_1g": large,
    "write_4g": four,
    "write_small": small,
    "rename_unclosed": unclosed,
    "copy_rename": copies,
    "append": appends,
}


@contextlib.contextmanager
def store(arguments: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield endpoint, bucket and environment of a server."""
    if arguments.endpoint_url is not None:
        yield arguments.endpoint_url, arguments.bucket, served.credentials()
        return
    with served.embedded(4 * LARGE_BYTES) as server:
        yield server.endpoint_url, server.bucket, server.environment


def measure(name: str, run: int, folder: Path, logs: Path) -> tuple[float, str]:
    """Run a workload once; return its rate (MB/s for large files, else operations) and a line."""
    pid = mounting.serving_process(folder)
    process = Process(pid)
    directory = folder / f"{name}-{time.time_ns()}"
    directory.mkdir()
    before = mounting.counters(pid, logs)
    process.reset_peak()
    cpu_s, start_s = process.cpu_seconds(), time.perf_counter()
    size_bytes, operations = WORKLOADS[name](directory)
    took_s, cpu_s = time.perf_counter() - start_s, process.cpu_seconds() - cpu_s
    peak_mb = process.peak_rss_bytes() / 1e6
    after = mounting.counters(pid, logs)
    asked = {each: after[each] - before[each] for each in after if after[each] != before[each]}
    shutil.rmtree(directory)
    if size_bytes >= LARGE_BYTES:
        rate = size_bytes / took_s / 1e6
        shown = f"{rate:7.0f} MB/s  {cpu_s / (size_bytes / 1e9):5.2f} CPU-s/GB"
    else:
        rate = operations / took_s
        shown = f"{rate:7.1f} /s    {cpu_s / operations * 1e3:5.2f} CPU-ms each"
    requests = " ".join(f"{kind}={count}" for kind, count in asked.items() if "bytes" not in kind)
    return rate, f"{name:16} {run}  {shown}  peak {peak_mb:4.0f} MB  {requests}"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench.writing", description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--endpoint-url", help="use this running server")
    parser.add_argument("--bucket", default="test-bucket", help="its bucket")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--option", action="append", default=[], help="pass this on, as --option=--x"
    )
    arguments = parser.parse_args()
    for name in arguments.workloads:
        if name not in WORKLOADS:
            parser.error(f"there is no workload '{name}'")
    if (problem := why_no_fuse()) is not None:
        parser.error(f"this machine cannot mount: {problem}")
    with (
        store(arguments) as (url, bucket, environment),
        served.mounted(url, bucket, environment, [*OPTIONS, *arguments.option]) as (folder, logs),
    ):
        for name in arguments.workloads or WORKLOADS:
            rates = []
            for run in range(1, arguments.runs + 1):
                rate, line = measure(name, run, folder, logs)
                rates.append(rate)
                print(line, flush=True)
            print(f"{name:16} median {statistics.median(rates):.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
