"""Throttle repeated refusals: log each once a minute, with the number since then. Pure.

A program that gets an error often tries again at once, thousands of times.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

#: Seconds after a line during which the same refusal is only counted.
QUIET_S = 60.0
#: Refusals that are remembered; the oldest are forgotten first, and logged again.
MANY_REFUSALS = 1000


class LogThrottle:
    """The refusals of the last minute. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # constants
        self._clock = clock
        # mutable, guarded by _lock: when each was logged, and its number since then
        self._lock = threading.Lock()
        self._said: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()  # oldest first

    def note(self, refusal: Hashable) -> int | None:
        """Count a refusal; None if it was just logged, else the number not logged."""
        now_s = self._clock()
        with self._lock:
            said_s, unsaid = self._said.get(refusal, (now_s - QUIET_S, 0))
            if now_s - said_s < QUIET_S:
                self._said[refusal] = said_s, unsaid + 1
                return None
            self._said[refusal] = now_s, 0
            self._said.move_to_end(refusal)
            if len(self._said) > MANY_REFUSALS:
                self._said.popitem(last=False)
            return unsaid
