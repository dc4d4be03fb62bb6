"""A mount for `mount-s3ctl warm`: a directory of sparse files, and caches in memory."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mountpoint.errors import MountError

MIB = 1 << 20


class FakeMount:
    """Keeps the blocks of what is read, except for the first `drops[path]` of them.

    `has_directory`, `has_bucket`: which caches there are. The bucket gets files of up to 1 MiB that
    are read whole.
    """

    def __init__(self, root: Path, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = str(root)
        self.status: dict[str, Any] = {"directory": str(root), "cache_directory": "/cache"}
        self.has_directory, self.has_bucket = True, False
        self.sent: set[str] = set()
        self.unsendable = False
        self.sizes = sizes
        self.kept: set[tuple[str, int]] = set()
        self.drops: Counter[str] = Counter()
        self.reads: list[tuple[str, int, int]] = []
        self.queued_bytes = 0
        self.limit_bytes = 64 * MIB
        self.unusable = 0  # answers
        self.at_most = 1 << 30  # files in one answer
        self.ended = False
        self._lock = threading.Lock()
        for path, size in sizes.items():
            full = root / path
            full.parent.mkdir(parents=True, exist_ok=True)
            full.touch()
            os.truncate(full, size)
        # Files elsewhere can be read with O_DIRECT only in whole sectors.
        monkeypatch.setattr(os, "O_DIRECT", 0)
        monkeypatch.setattr(os, "preadv", self._read)

    def ask(self, command: str, /, **request: Any) -> dict[str, Any]:
        """Answer `cached`."""
        assert command == "cached"
        if self.ended:
            raise MountError(f"the mount at '{self.directory}' has ended")
        usable = not self.unusable
        self.unusable = max(self.unusable - 1, 0)
        paths = request["paths"][: self.at_most] if usable else []
        return {
            "files": [self._state(path) for path in paths],
            "usable": usable,
            "queued_bytes": self.queued_bytes,
            "queue_limit_bytes": self.limit_bytes if self.has_directory else 0,
            "sending_bytes": 0,
            "sending_limit_bytes": self.limit_bytes if self.has_bucket else 0,
        }

    def forget(self, path: str, block: int) -> None:
        """Remove a block from the cache."""
        self.kept.remove((path, block))

    def fill(self) -> None:
        """Put all blocks into the cache."""
        for path, size in self.sizes.items():
            self.kept |= {(path, block) for block in range(-(-size // MIB))}

    def _state(self, path: str) -> dict[str, Any]:
        if path not in self.sizes:
            return {"error": "it does not exist"}
        size = self.sizes[path]
        missing = [list(each) for each in self._missing(path, size)]
        if not self.has_bucket:
            return {"size_bytes": size, "missing": missing}
        unsent = 0 < size <= MIB and path not in self.sent
        if not self.has_directory:
            missing = [[0, size]] if unsent else []
        too_large = size > MIB and not self.has_directory
        return {"size_bytes": size, "missing": missing, "unsent": unsent, "too_large": too_large}

    def _missing(self, path: str, size: int) -> Iterator[tuple[int, int]]:
        start = None
        for block in range(-(-size // MIB) + 1):
            lacks = block * MIB < size and (path, block) not in self.kept
            if lacks and start is None:
                start = block * MIB
            elif not lacks and start is not None:
                yield start, min(block * MIB, size)
                start = None

    def _read(self, file: int, buffers: list[memoryview], offset: int) -> int:
        full = os.readlink(f"/proc/self/fd/{file}")
        path = os.path.relpath(full, self.directory)
        length = min(len(buffers[0]), max(os.stat(full).st_size - offset, 0))
        with self._lock:
            self.reads.append((path, offset, offset + length))
            if length == self.sizes[path] <= MIB and not self.unsendable:
                self.sent.add(path)
            for block in range(offset // MIB, -(-(offset + length) // MIB)):
                if self.drops[path]:
                    self.drops[path] -= 1
                else:
                    self.kept.add((path, block))
        return length
