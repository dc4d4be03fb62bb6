"""Locks on the bucket's keys: a rename waits for changes under way, and later changes wait for it.

An upload, an open for writing, a copy of an object onto itself or a delete holds its key
(`shared`); several may hold the same key. A rename or a removal holds keys alone (`alone`): the
keys of a file, or a prefix that ends in "/" with all keys below it. It waits until no change is
under way there, and changes that begin meanwhile wait for it. So a change to a file happens before
the rename of its directory, or after it and under the new name. For that the caller passes a
function that returns its key, and the lock calls it again after each wait.

There is no deadlock as long as no thread takes a second lock while it holds one: a rename takes all
its keys in one step, and the changes that it waits for do not wait here. A wait ends when the
changes before it end, whose own waits are bounded, or with the mount.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mountpoint.errors import Interrupted

#: How often a waiting thread checks whether the mount is going away, in seconds.
LOOK_S = 1.0


class KeyLocks:
    """Locks on the keys of one mount. Thread-safe; its callers wait."""

    def __init__(self, stopping: threading.Event) -> None:
        # dependencies
        self._stopping = stopping
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._shared: Counter[bytes] = Counter()  # how often each key is held
        self._alone: list[list[bytes]] = []  # the keys of renames, those that still wait included

    @contextmanager
    def shared(self, key: Callable[[], bytes]) -> Iterator[None]:
        """Hold the key that `key` returns. Raises Interrupted if the mount goes away first."""
        with self._changed:
            while any(_meet(key(), other) for keys in self._alone for other in keys):
                self._wait()
            held = key()
            self._shared[held] += 1
        try:
            yield
        finally:
            with self._changed:
                self._shared[held] -= 1
                if not self._shared[held]:
                    del self._shared[held]
                self._changed.notify_all()

    @contextmanager
    def alone(self, keys: Callable[[], list[bytes]]) -> Iterator[None]:
        """Hold the keys that `keys` returns, and all below them. Raises Interrupted as `shared`."""
        with self._changed:
            while any(_meet(key, each) for key in keys() for held in self._alone for each in held):
                self._wait()
            wanted = keys()
            self._alone.append(wanted)
        try:
            with self._changed:
                while any(_meet(key, each) for key in wanted for each in self._shared):
                    self._wait()
            yield
        finally:
            with self._changed:
                self._alone.remove(wanted)
                self._changed.notify_all()

    def _wait(self) -> None:
        if self._stopping.is_set():
            raise Interrupted("the mount is ending")
        self._changed.wait(LOOK_S)


def _meet(key: bytes, other: bytes) -> bool:
    """Whether two keys are the same, or one is below the other. Pure."""
    return _covers(key, other) or _covers(other, key)


def _covers(held: bytes, key: bytes) -> bool:
    return key.startswith(held) if held.endswith(b"/") else key == held
