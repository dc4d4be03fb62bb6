"""What is refused again and again is said once a minute, with how often it happened since. Pure.

A program that may not do something often tries again at once, thousands of times.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

#: After a line the same refusal is only counted, for so long.
QUIET_S = 60.0
#: Refusals that are remembered; of more the oldest are said again.
MANY_REFUSALS = 1000


class LogThrottle:
    """The refusals of the last minute. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # constants
        self._clock = clock
        # mutable, guarded by _lock: when each was said, and how often it has happened since
        self._lock = threading.Lock()
        self._said: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()  # oldest first

    def note(self, refusal: Hashable) -> int | None:
        """Count a refusal; None if it has been said, else how often it has happened unsaid."""
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
