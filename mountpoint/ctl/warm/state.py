"""What the data caches of a mount have of files, as the mount tells it."""

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
    """A file, and the ranges that are to be fetched; with a `problem` nothing is known.

    `unsent`: the bucket of the shared cache lacks it, so that the mount is to send it there.
    `too_large`: no cache keeps it, because there is only that bucket.
    """

    path: str
    size_bytes: int = 0
    missing: Sequence[Range] = ()
    problem: str = ""
    unsent: bool = False
    too_large: bool = False

    @property
    def missing_bytes(self) -> int:
        """The bytes that are to be fetched: all of a file that is sent, if any."""
        if self.unsent and self.missing:
            return self.size_bytes
        return sum(stop - start for start, stop in self.missing)

    @property
    def is_warm(self) -> bool:
        """Whether nothing is to be read, because the caches have it, or no cache takes it."""
        return not self.missing and not self.unsent

    @property
    def to_read(self) -> Sequence[Range]:
        """The ranges that are to be read through the mount."""
        return [(0, self.size_bytes)] if self.unsent else self.missing


@dataclass(frozen=True, slots=True)
class Queue:
    """Blocks that the mount has yet to write to a cache, and the most that it holds."""

    queued_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Queues:
    """The queues for the directory of `--cache`, and for the bucket of `--cache-xz`."""

    written: Queue
    sent: Queue

    @property
    def are_empty(self) -> bool:
        """Whether all blocks are in the caches, or were dropped."""
        return not self.written.queued_bytes and not self.sent.queued_bytes


class CacheState:
    """Asks a mount for the state of files. Thread-safe."""

    def __init__(self, mount: Asked, stopping: threading.Event) -> None:
        self._mount = mount
        self._stopping = stopping

    def queues(self) -> Queues:
        """Return the state of the mount's queues. Raises MountError."""
        return _queues(self._mount.ask("cached", paths=[]))

    def of(self, paths: Sequence[str]) -> tuple[list[FileState], Queues]:
        """Return the state of files, and then of the queues. Raises MountError.

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
                return states, _queues(answer)
            if answer["usable"]:
                continue
            if time.monotonic() - began_s > UNUSABLE_S:
                raise MountError(
                    f"the mount at '{self._mount.directory}' does not use its cache at the moment",
                    f"its log says why: mount-s3ctl log {self._mount.directory}",
                )
            if self._stopping.wait(RETRY_S):
                return states, _queues(answer)


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
    return FileState(
        path,
        found["size_bytes"],
        missing,
        unsent=found.get("unsent", False),
        too_large=found.get("too_large", False),
    )


def _queues(answer: dict[str, Any]) -> Queues:
    written = Queue(answer["queued_bytes"], answer["queue_limit_bytes"])
    return Queues(
        written, Queue(answer.get("sending_bytes", 0), answer.get("sending_limit_bytes", 0))
    )
