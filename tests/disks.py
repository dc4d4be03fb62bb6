"""Small disks: file systems in memory that a test mounts, as root."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def disk_in_memory(path: Path, size: str) -> Iterator[Path]:
    """Mount a file system of this size, such as "8m", in a directory, which is created."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)
