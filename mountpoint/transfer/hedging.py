"""Decide when to hedge a request: to send a second one for the same bytes. Pure: no clock.

A request that takes several times as long as nearly all others of its size is stuck rather than
slow, and a second request is usually faster.
"""

from collections import defaultdict, deque

#: Past requests kept per size class; a class lies between two powers of two.
LAST_REQUESTS = 64
#: With fewer requests, the slowest of twenty is unknown.
MIN_REQUESTS = 20
#: Requests after which the slowest of twenty is determined again.
JUDGED_REQUESTS = 8
#: A request is late after this many times the duration of the slowest of twenty, but never earlier
#: than MIN_LATE_S: a busy machine delays everything by some tens of milliseconds.
LATE_FACTOR = 3.0
MIN_LATE_S = 0.1
#: The share of all requests that may be hedged.
HEDGED_SHARE = 0.02
#: Hedges that may be saved up.
MOST_ALLOWED = 10.0


class _SizeClass:
    """The last requests of one size class, and the time after which one is late."""

    def __init__(self) -> None:
        self.late_s = float("inf")
        self._durations_s: deque[float] = deque(maxlen=LAST_REQUESTS)
        self._unjudged = 0

    def arrived(self, duration_s: float) -> None:
        """Record the seconds that a request took."""
        self._durations_s.append(duration_s)
        self._unjudged += 1
        # Sorting after each request would be most of the cost.
        if self._unjudged >= (MIN_REQUESTS if self.late_s == float("inf") else JUDGED_REQUESTS):
            self._unjudged = 0
            slowest_of_twenty_s = sorted(self._durations_s)[len(self._durations_s) * 95 // 100]
            self.late_s = max(LATE_FACTOR * slowest_of_twenty_s, MIN_LATE_S)


class HedgingPolicy:
    """Says when a request is late for its size, and whether it may be hedged."""

    def __init__(self) -> None:
        # by bit length of the size
        self._classes: defaultdict[int, _SizeClass] = defaultdict(_SizeClass)
        self._allowed = 1.0  # hedges allowed now; fractions add up

    def arrived(self, size_bytes: int, duration_s: float) -> None:
        """Record the seconds that a request took."""
        if self._allowed < MOST_ALLOWED:
            self._allowed += HEDGED_SHARE
        self._classes[size_bytes.bit_length()].arrived(duration_s)

    def late_s(self, size_bytes: int) -> float:
        """Return the seconds after which a request is late; infinite if unknown."""
        size_class = self._classes.get(size_bytes.bit_length())
        return float("inf") if size_class is None else size_class.late_s

    def hedge(self) -> bool:
        """Claim one hedge; True if the share of hedged requests allows it."""
        if self._allowed < 1.0:
            return False
        self._allowed -= 1.0
        return True
