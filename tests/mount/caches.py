"""What tests of the data cache see of it, and of the kernel's cache above it."""

import os
from pathlib import Path

from mountpoint.cache.directory import FORMAT, NAME


def blocks(cache: Path) -> list[Path]:
    """Return the files of all blocks in a cache directory, without small blocks."""
    return sorted((cache / NAME / FORMAT).glob("*-*/??/*.*"))


def forget_pages(path: Path) -> None:
    """Make the kernel drop a file's pages, so that its reads come to the mount."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
