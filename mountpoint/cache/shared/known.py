"""What a mount knows about the blocks of the shared cache without asking its bucket.

A block is missing if a request has shown that, queued while it waits to be sent, and there once it
was sent, read or seen. Each answer is valid for a minute: other mounts send blocks, and a lifecycle
rule of the bucket removes them.
"""

import enum
import threading
import time
from collections.abc import Callable

#: An object may have been fetched ahead and not read, or its block not kept: it is asked for again
#: after this time.
KNOWN_S = 60.0
#: Of each state, the oldest are forgotten.
MAX_KNOWN = 10_000


class State(enum.Enum):
    """What is known about a block."""

    MISSING = enum.auto()
    QUEUED = enum.auto()
    THERE = enum.auto()


class Known:
    """The states of blocks, by their keys. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # dependencies
        self._clock = clock
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        # Keys, and since when; the oldest first. Invariant: each key is in one of them at most.
        self._since_s: dict[State, dict[bytes, float]] = {state: {} for state in State}

    def state(self, key: bytes) -> State | None:
        """Return what is known about a block; None if nothing is."""
        oldest_s = self._clock() - KNOWN_S
        with self._lock:
            for state, since_s in self._since_s.items():
                if since_s.get(key, oldest_s) > oldest_s:
                    return state
        return None

    def note(self, key: bytes, state: State | None) -> None:
        """Note the state of a block; None: it is not known any more."""
        with self._lock:
            self._note(key, state)

    @property
    def any_missing(self) -> bool:
        """Whether any block is known to be missing. Takes no lock: each read asks."""
        return bool(self._since_s[State.MISSING])

    def take_missing(self, key: bytes) -> bool:
        """Whether a block was missing, however long ago; then it counts as queued."""
        with self._lock:
            if key not in self._since_s[State.MISSING]:
                return False
            self._note(key, State.QUEUED)
            return True

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            keys = [key for since_s in self._since_s.values() for key in since_s]
            assert len(keys) == len(set(keys))
            assert all(len(since_s) <= MAX_KNOWN for since_s in self._since_s.values())

    def _note(self, key: bytes, state: State | None) -> None:
        for since_s in self._since_s.values():
            since_s.pop(key, None)
        if state is not None:
            keys = self._since_s[state]
            keys[key] = self._clock()
            if len(keys) > MAX_KNOWN:
                del keys[next(iter(keys))]
