"""Which keys of the bucket are being changed: a rename waits for that, and all else for a rename.

An upload, a copy of an object onto itself or a delete holds its key (`shared`); several may hold
the same. A rename or a removal holds keys alone (`alone`): those of a file, or a prefix that ends
in "/" and all keys below it. It waits until nothing is under way there, and what begins meanwhile
waits for it. So what is done to a file is done either before its directory is renamed, or after
that and under the new name: the caller says how its key is found out, and that is done anew after
each wait.

There is no deadlock, as long as nobody takes a second lock while it has one: all keys of a rename
are taken at once, and what it waits for waits for nobody. Waits end when those before them end,
whose own waits are bounded, or with the mount.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mountpoint.errors import Interrupted

#: How often who waits looks whether the mount is going away.
LOOK_S = 1.0


class KeyLocks:
    """The keys of one mount that are being changed. Thread-safe; its callers wait."""

    def __init__(self, stopping: threading.Event) -> None:
        # dependencies
        self._stopping = stopping
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._shared: Counter[bytes] = Counter()  # keys that are being changed, how often
        self._alone: list[list[bytes]] = []  # those of renames, also while they wait

    @contextmanager
    def shared(self, key: Callable[[], bytes]) -> Iterator[None]:
        """Hold the key that `key` returns. Raises Interrupted when the mount goes away first."""
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
        """Hold what `keys` returns, and all below. Raises Interrupted as `shared`."""
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
            raise Interrupted("the mount is going away")
        self._changed.wait(LOOK_S)


def _meet(key: bytes, other: bytes) -> bool:
    """Whether two keys are the same, or one is below the other. Pure."""
    return _covers(key, other) or _covers(other, key)


def _covers(held: bytes, key: bytes) -> bool:
    return key.startswith(held) if held.endswith(b"/") else key == held
