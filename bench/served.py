"""The server and the mount that benchmarks measure: a new server, or a running one."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools import mounting
from tools.servers import SeaweedFS

#: The server keeps its files in memory if they fit: the disk is not measured, and with cold caches
#: the server would read from it.
MEMORY_FOLDER = Path("/dev/shm")
SPARE_BYTES = 2 << 30


@contextlib.contextmanager
def embedded(size_bytes: int) -> Iterator[SeaweedFS]:
    """Yield a server on loopback with room for objects of this total size."""
    needed_bytes = size_bytes + SPARE_BYTES
    roomy = MEMORY_FOLDER.is_dir() and shutil.disk_usage(MEMORY_FOLDER).free > needed_bytes
    with (
        tempfile.TemporaryDirectory(
            prefix="mount-s3-bench-", dir=MEMORY_FOLDER if roomy else None
        ) as name,
        SeaweedFS(folder=Path(name) / "server") as server,
    ):
        yield server


def credentials() -> dict[str, str]:
    """Return the variables of AWS in this process's environment."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@contextlib.contextmanager
def mounted(
    url: str, bucket: str, environment: dict[str, str], options: Sequence[str] = ()
) -> Iterator[tuple[Path, Path]]:
    """Mount a bucket; yield the folders of the mount and of its log."""
    with tempfile.TemporaryDirectory(prefix="mount-s3-bench-") as name:
        folder, logs = Path(name) / "mnt", Path(name) / "log"
        folder.mkdir()
        where = ["--endpoint-url", url, "--region", "us-east-1", "--force-path-style"]
        environment = {**environment, "MOUNTPOINT_LOG": mounting.COUNTERS_FILTER}
        mounting.mount(bucket, folder, [*where, *options], environment, logs)
        try:
            yield folder, logs
        finally:
            mounting.unmount(folder)
