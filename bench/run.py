"""How fast is a mount? `python -m bench.run`, or `make bench`.

Starts SeaweedFS on loopback (or takes `--endpoint-url` and `--bucket`, with credentials in the
usual variables), fills the bucket, mounts it as a user would, and runs each workload several
times with cold caches. Prints medians: throughput or operations per second, CPU seconds of the
mounting process per GB or per operation, and its memory. `--json FILE` writes them, with the
commit and the machine.

On one machine server, kernel and mount share the processors, so only ratios within one run say
anything. Cold caches need root (/proc/sys/vm/drop_caches); without, it says so.
"""

import argparse
import contextlib
import json
import mmap
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.config

from tools import mounting
from tools.fuse_check import why_no_fuse
from tools.servers import SeaweedFS

LARGE_BYTES = 1 << 30
CHUNK_BYTES = 64 << 20
SMALL_FILES = 500
SMALL_BYTES = 100 << 10
TREE_FOLDERS = 50
TREE_FILES = 20
RANDOM_READS = 1000
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Result:
    """What one workload did, in medians. `unit` says what `amount` counts: bytes or operations."""

    name: str
    unit: str
    amount: int
    seconds: float
    cpu_seconds: float
    rss_bytes: int

    def line(self) -> str:
        """Return one line of the table."""
        if self.unit == "bytes":
            rate = f"{self.amount / self.seconds / 1e6:8.0f} MB/s"
            cpu = f"{self.cpu_seconds / (self.amount / 1e9):6.2f} CPU-s/GB"
        else:
            rate = f"{self.amount / self.seconds:8.0f} /s  "
            cpu = f"{self.cpu_seconds / self.amount * 1e3:6.2f} CPU-ms each"
        return f"{self.name:16} {rate}  {cpu:20}  {self.rss_bytes >> 20:5} MiB"


# -- workloads: each gets the folder and returns unit and amount -------------------------------


def sequential(folder: Path, *, direct: bool) -> tuple[str, int]:
    """Read the large file from start to end in 1 MiB reads."""
    buffer = mmap.mmap(-1, 1 << 20)
    fd = os.open(folder / "large", os.O_RDONLY | (os.O_DIRECT if direct else 0))
    total = 0
    while count := os.readv(fd, [buffer]):
        total += count
    os.close(fd)
    return "bytes", total


def random_reads(folder: Path, size: int) -> tuple[str, int]:
    """Read `size` bytes at random places, one after another, past the page cache."""
    source, buffer = random.Random(1), mmap.mmap(-1, size)
    fd = os.open(folder / "large", os.O_RDONLY | os.O_DIRECT)
    for _ in range(RANDOM_READS):
        os.preadv(fd, [buffer], source.randrange(LARGE_BYTES // size) * size)
    os.close(fd)
    return "operations", RANDOM_READS


def small_files(folder: Path, threads: int) -> tuple[str, int]:
    """List the folder of small files and read each of them."""
    paths = sorted((folder / "small").iterdir())
    with ThreadPoolExecutor(threads) as pool:
        total = sum(len(body) for body in pool.map(Path.read_bytes, paths))
    assert total == SMALL_FILES * SMALL_BYTES
    return "operations", len(paths)


def walk(folder: Path) -> tuple[str, int]:
    """Walk the tree and stat every file."""
    count = 0
    for base, _, names in os.walk(folder / "tree"):
        for name in names:
            os.stat(os.path.join(base, name))
            count += 1
    assert count == TREE_FOLDERS * TREE_FILES
    return "operations", count


WORKLOADS: dict[str, Callable[[Path], tuple[str, int]]] = {
    "sequential": lambda folder: sequential(folder, direct=False),
    "again": lambda folder: sequential(folder, direct=False),
    "direct": lambda folder: sequential(folder, direct=True),
    "random 4 KiB": lambda folder: random_reads(folder, 4096),
    "random 128 KiB": lambda folder: random_reads(folder, 128 << 10),
    "small files": lambda folder: small_files(folder, 1),
    "small, 16 at once": lambda folder: small_files(folder, 16),
    "walk and stat": walk,
}
WARM = {"again"}


# -- measuring -----------------------------------------------------------------------------------


def measure(name: str, folder: Path, pid: int, runs: int) -> Result:
    """Run one workload `runs` times; return the medians."""
    seconds, cpu = [], []
    unit, amount = "", 0
    for _ in range(runs):
        if name not in WARM:
            drop_caches()
        cpu_before, before = cpu_seconds(pid), time.perf_counter()
        unit, amount = WORKLOADS[name](folder)
        seconds.append(time.perf_counter() - before)
        cpu.append(cpu_seconds(pid) - cpu_before)
    return Result(
        name, unit, amount, statistics.median(seconds), statistics.median(cpu), rss_bytes(pid)
    )


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_bytes(pid: int) -> int:
    """Return the memory that a process has now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS:")]
    return int(line.split()[1]) << 10


def drop_caches() -> None:
    """Make the kernel forget cached pages and names, where that is allowed."""
    with contextlib.suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


# -- the bucket ----------------------------------------------------------------------------------


def fill(client: Any, bucket: str) -> None:
    """Put the objects that the workloads read; the large one in parts."""
    upload = client.create_multipart_upload(Bucket=bucket, Key="large")["UploadId"]
    parts = []
    for number in range(1, LARGE_BYTES // CHUNK_BYTES + 1):
        body = random.Random(number).randbytes(CHUNK_BYTES)
        part = client.upload_part(
            Bucket=bucket, Key="large", UploadId=upload, PartNumber=number, Body=body
        )
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
    client.complete_multipart_upload(
        Bucket=bucket, Key="large", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    body = random.Random(0).randbytes(SMALL_BYTES)
    bodies = {f"small/{number:04}": body for number in range(SMALL_FILES)}
    bodies |= {
        f"tree/{folder}/{number}": b"x" * 100
        for folder in range(TREE_FOLDERS)
        for number in range(TREE_FILES)
    }

    def put(item: tuple[str, bytes]) -> None:
        client.put_object(Bucket=bucket, Key=item[0], Body=item[1])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, bodies.items()))


@contextlib.contextmanager
def store(arguments: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield endpoint, bucket and environment of a server whose bucket is filled."""
    if arguments.endpoint_url is None:
        with SeaweedFS() as server:
            fill(server.client(max_pool_connections=8), server.bucket)
            yield server.endpoint_url, server.bucket, server.environment
        return
    config = botocore.config.Config(s3={"addressing_style": "path"}, max_pool_connections=8)
    fill(boto3.client("s3", endpoint_url=arguments.endpoint_url, config=config), arguments.bucket)
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    yield arguments.endpoint_url, arguments.bucket, keys


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--endpoint-url")
    parser.add_argument("--bucket", default="test-bucket")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if (problem := why_no_fuse()) is not None:
        parser.error(f"this machine cannot mount: {problem}")
    if os.geteuid() != 0:
        print("Not root: caches stay warm, and cold figures are too good.")
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="mount-s3-bench-") as name,
        store(arguments) as (url, bucket, environment),
    ):
        folder = Path(name) / "mnt"
        folder.mkdir()
        options = ["--endpoint-url", url, "--region", "us-east-1", "--force-path-style"]
        mounting.mount(bucket, folder, options, environment, Path(name) / "log")
        try:
            (pid,) = mounting.mount_processes(folder)
            for workload in arguments.workloads or WORKLOADS:
                results.append(measure(workload, folder, pid, arguments.runs))
                print(results[-1].line(), flush=True)
        finally:
            mounting.unmount(folder)
    if arguments.json:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
        about = {
            "commit": commit.stdout.strip(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
            "python": platform.python_version(),
            "results": [asdict(result) for result in results],
        }
        arguments.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
