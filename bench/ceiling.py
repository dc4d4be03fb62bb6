"""Measure the upper limit of a mount's speed: `python -m bench.ceiling`, options as `bench.run`.

A mount has two halves that share the processors: the kernel's and the client's. This measures each
one alone: a file system of zeros over the same channel, and the client without a file system. A
mount cannot be faster than the slower half. If each half waits for the other (one small file after
another), or each keeps all processors busy (many files in parallel), it cannot be faster than both
halves in sequence: 1 / (1/a + 1/b).
"""

import mmap
import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import measure, objects, run
from bench.objects import KIB, MIB
from mountpoint.config import BucketConfig, ClientConfig, CredentialsConfig
from mountpoint.fuse import binding
from mountpoint.fuse.binding import llfuse
from mountpoint.metrics.recorder import Meters
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.connect import connect
from mountpoint.system import kernel
from tools import mounting

ZEROS_BYTES = 4096 * MIB
SMALL_BYTES = 100 * KIB
GETS = 2000


class Zeros(llfuse.Operations):  # type: ignore[misc]  # llfuse has no types
    """A file `zeros`, and small files named by numbers. Reads return without a wait."""

    def __init__(self) -> None:
        super().__init__()
        self._zeros = memoryview(bytes(MIB))

    def getattr(self, inode: int, ctx: Any) -> Any:
        """Return the attributes of the root or of a file."""
        entry = llfuse.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == 1 else stat.S_IFREG | 0o444
        entry.st_size = {1: 0, 2: ZEROS_BYTES}.get(inode, SMALL_BYTES)
        entry.entry_timeout = entry.attr_timeout = 60.0
        return entry

    def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        """Find a file."""
        if name == b"zeros":
            return self.getattr(2, ctx)
        if name.isdigit():
            return self.getattr(10 + int(name), ctx)
        raise llfuse.FUSEError(2)

    def open(self, inode: int, flags: int, ctx: Any) -> int:
        """Open a file."""
        return inode

    def read(self, fh: int, off: int, size: int) -> memoryview:
        """Return zeros."""
        file_bytes = ZEROS_BYTES if fh == 2 else SMALL_BYTES
        return self._zeros[: max(min(size, file_bytes - off), 0)]

    def release(self, fh: int) -> None:
        """Close a file."""


def serve(folder: str) -> None:
    """Mount the zeros and serve them until they are unmounted."""
    binding.widen(True)
    llfuse.init(Zeros(), folder, {"fsname=zeros", "ro"})
    try:
        llfuse.main(workers=16)
    finally:
        llfuse.close(unmount=True)


def read_all(path: Path, step: int, flags: int) -> int:
    """Read a file from end to end; return its bytes."""
    buffer, total = mmap.mmap(-1, step), 0
    file = os.open(path, os.O_RDONLY | flags)
    try:
        while count := os.preadv(file, [buffer], total):
            total += count
    finally:
        os.close(file)
    return total


def read_small(folder: Path, at_once: int) -> float:
    """Open, read and close small files; return how many per second."""

    def read(number: int) -> None:
        file = os.open(folder / str(number), os.O_RDONLY)
        try:
            while os.read(file, 128 * KIB):
                pass
        finally:
            os.close(file)

    start_s = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(read, range(at_once * GETS, (at_once + 1) * GETS)))
    return GETS / (time.perf_counter() - start_s)


def kernel_half() -> Iterator[str]:
    """Measure reads of zeros: the cost of llfuse, the channel and the kernel."""
    with tempfile.TemporaryDirectory(prefix="mount-s3-ceiling-") as name:
        command = [sys.executable, "-m", "bench.ceiling", "serve", name]
        server = subprocess.Popen(command)
        try:
            path = Path(name) / "zeros"
            while name not in kernel.mount_points():
                time.sleep(0.01)
            kernel.ReadAhead(name).set_for(b"zeros")
            process = measure.Process(server.pid)
            for label, step, flags in (
                ("zeros, O_DIRECT, 1 MiB", MIB, os.O_DIRECT),
                ("zeros, buffered, 256 KiB", 256 * KIB, 0),
            ):
                measure.drop_caches()
                cpu_s = process.cpu_seconds() + own_cpu_s()
                start_s = time.perf_counter()
                gigabytes = read_all(path, step, flags) / 1e9
                seconds = time.perf_counter() - start_s
                cpu_s = process.cpu_seconds() + own_cpu_s() - cpu_s
                yield line(label, f"{gigabytes / seconds * 1e3:.0f} MB/s", cpu_s / gigabytes, "GB")
            for label, at_once in (("zeros, small files", 1), ("zeros, small by 16", 16)):
                cpu_s = process.cpu_seconds()
                rate = read_small(Path(name), at_once)
                cpu_s = process.cpu_seconds() - cpu_s
                yield line(label, f"{rate:.0f} /s", cpu_s / GETS * 1e3, "ms each")
        finally:
            mounting.unmount(Path(name))
            server.wait()


class Arrival:
    """Discards the body of a GET."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._error: Exception | None = None

    def on_headers(self, info: ObjectInfo) -> None:
        """See BodySink."""

    def on_body(self, chunk: bytes, offset: int) -> None:
        """See BodySink."""

    def finish(self, error: Exception | None) -> None:
        """See BodySink."""
        self._error = error
        self._ended.set()

    def wait(self) -> None:
        """Wait for the end."""
        self._ended.wait()
        if self._error is not None:
            raise self._error


def client_half(client: ObjectClient, key: bytes) -> Iterator[str]:
    """Measure GETs of one object: the cost of awscrt and of the calls to it."""
    info = client.head(key).result()

    def get(start: int, size: int) -> None:
        arrival = Arrival()
        client.get(info, start, start + size, arrival)
        arrival.wait()

    for label, size, at_once, count in (
        ("GET 8 MiB, 8 at once", 8 * MIB, 8, min(info.size_bytes // (8 * MIB), 512)),
        ("GET 4 KiB", 4 * KIB, 1, GETS),
        ("GET 100 KiB", SMALL_BYTES, 1, GETS),
        ("GET 100 KiB, 16 at once", SMALL_BYTES, 16, GETS),
    ):
        starts = [index * size % (info.size_bytes - size + 1) for index in range(count)]
        cpu_s, start_s = own_cpu_s(), time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda start, size=size: get(start, size), starts))
        seconds, cpu_s = time.perf_counter() - start_s, own_cpu_s() - cpu_s
        if size >= MIB:
            gigabytes = count * size / 1e9
            yield line(label, f"{gigabytes / seconds * 1e3:.0f} MB/s", cpu_s / gigabytes, "GB")
        else:
            yield line(label, f"{count / seconds:.0f} /s", cpu_s / count * 1e3, "ms each")


def own_cpu_s() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def line(label: str, rate: str, cpu: float, unit: str) -> str:
    """Return a line of the table; `cpu` is seconds, or milliseconds for "ms each"."""
    shown = f"{cpu:.2f} s/{unit}" if unit == "GB" else f"{cpu:.2f} {unit}"
    return f"| {label:26} | {rate:10} | {shown:12} |"


def main() -> int:
    """Measure both halves."""
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
        return 0
    arguments = run.arguments_of(sys.argv[1:])
    print(f"| {'':26} | {'rate':10} | {'CPU':12} |")
    for each in kernel_half():
        print(each, flush=True)
    with run.store(arguments) as (url, bucket, environment):
        os.environ.update(environment)  # botocore looks for the keys there
        client = connect(
            BucketConfig(bucket, region="us-east-1", endpoint_url=url, force_path_style=True),
            CredentialsConfig(),
            ClientConfig(),
            os.environ,
            threading.Event(),
            Meters(),
        )
        for each in client_half(client, objects.LARGE.encode()):
            print(each, flush=True)
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
