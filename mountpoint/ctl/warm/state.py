"""What the data cache of a mount has of files, as the mount tells it."""

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mountpoint.errors import MountError

#: Paths in one question: at most so many, and so many bytes of JSON. A mount takes 64 KiB.
MAX_PATHS = 256
MAX_BYTES = 48 << 10
#: A mount leaves its cache alone for half a minute after a failure. Seconds to wait for it.
UNUSABLE_S = 90.0
RETRY_S = 1.0

Range = tuple[int, int]


class Asked(Protocol):
    """The part of `Mount` that is used here."""

    @property
    def directory(self) -> str:
        """The mount point."""
        ...

    def ask(self, command: str, /, **request: Any) -> dict[str, Any]:
        """Send it a command."""
        ...


@dataclass(frozen=True, slots=True)
class FileState:
    """A file, and the ranges that the cache lacks; with a `problem` nothing is known."""

    path: str
    size_bytes: int = 0
    missing: Sequence[Range] = ()
    problem: str = ""

    @property
    def missing_bytes(self) -> int:
        """The bytes that the cache lacks."""
        return sum(stop - start for start, stop in self.missing)


@dataclass(frozen=True, slots=True)
class Queue:
    """Blocks that the mount has yet to write to its cache, and the most that it holds."""

    queued_bytes: int
    limit_bytes: int


class CacheState:
    """Asks a mount for the state of files. Thread-safe."""

    def __init__(self, mount: Asked, stopping: threading.Event) -> None:
        self._mount = mount
        self._stopping = stopping

    def queue(self) -> Queue:
        """Return the state of the mount's queue. Raises MountError."""
        return _queue(self._mount.ask("cached", paths=[]))

    def of(self, paths: Sequence[str]) -> tuple[list[FileState], Queue]:
        """Return the state of files, and then of the queue. Raises MountError.

        The files are fewer when it was stopped.
        """
        states: list[FileState] = []
        began_s = time.monotonic()
        while True:
            # The files first: what is not queued afterwards is in the cache, or was dropped.
            answer = self._mount.ask("cached", paths=list(paths[len(states) :]))
            for found in answer["files"]:
                states.append(_state(paths[len(states)], found))
                began_s = time.monotonic()
            if len(states) == len(paths):
                return states, _queue(answer)
            if answer["usable"]:
                continue
            if time.monotonic() - began_s > UNUSABLE_S:
                raise MountError(
                    f"the mount at '{self._mount.directory}' does not use its cache at the moment",
                    f"its log says why: mount-s3ctl log {self._mount.directory}",
                )
            if self._stopping.wait(RETRY_S):
                return states, _queue(answer)


def batches(paths: Iterable[str]) -> Iterator[list[str]]:
    """Yield the paths in lists that each fit into one question."""
    batch: list[str] = []
    size = 0
    for path in paths:
        length = len(json.dumps(path)) + 2
        if batch and (len(batch) == MAX_PATHS or size + length > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += length
    if batch:
        yield batch


def _state(path: str, found: dict[str, Any]) -> FileState:
    if "error" in found:
        return FileState(path, problem=found["error"])
    missing = [(start, stop) for start, stop in found["missing"]]
    return FileState(path, found["size_bytes"], missing)


def _queue(answer: dict[str, Any]) -> Queue:
    return Queue(answer["queued_bytes"], answer["queue_limit_bytes"])
