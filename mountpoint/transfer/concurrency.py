"""Decide how many parts to have in flight and when to hedge a request, from past durations. Pure.

In flight: on a fast link eight parts are enough, and more would only queue in our memory. Where
each connection has its own limit (S3 gives one about 90 MB/s), more connections are faster. The
duration of a part shows which case it is. If one more part in flight slows all of them down, they
share a bottleneck; if not, there is room. So while readers wait, `Flight` tries half as many parts
again, and keeps them if a part then takes about as long as before.

Hedging: a request that takes several times as long as nearly all others of its size is stuck
rather than slow, and a second request for the same bytes is usually faster. `Lateness` says after
how long to send one, and how many such requests are allowed.

Neither has a clock: durations are passed in.
"""

from collections import defaultdict, deque
from statistics import median

from mountpoint.config import REQUEST_S

#: On two cores without latency, 8 parts of 8 MiB were best: 4 were 15 % slower, 16 no faster.
BASE_PARTS = 8

#: More parts are tried if readers waited for at least this share. They never wait for all parts,
#: even if the link is the limit: parts in flight together arrive together.
WAITED_SHARE = 0.2
#: With half as many parts again, a part may take at most this many times as long. With a shared
#: bottleneck it would take 1.5 times as long.
TOLERANCE = 1.12
#: Parts per decision, for each part in flight. On a busy machine, where durations vary by a third,
#: the median of eight is good by chance too often, and such errors add up: on a link that eight
#: parts fill, the mean was 12 parts in flight. With twice as many parts to judge by, it was nine.
JUDGED = 2
#: At this share of the configured link bandwidth, more parts would gain nothing.
FULL_SHARE = 0.9
#: Decisions to skip after a try that did not help.
PAUSE_TURNS = 32


class Flight:
    """The number of parts that all readers may have in flight: `BASE_PARTS` to `most_parts`."""

    def __init__(self, most_parts: int) -> None:
        # constants
        self._most = max(most_parts, BASE_PARTS)
        # mutable
        self.parts = BASE_PARTS
        self._before: tuple[int, float] | None = None  # parts, and seconds per part, before the try
        self._pause = 0
        self._durations_s: list[float] = []
        self._waited = 0

    def arrived(self, duration_s: float, *, waited: bool) -> None:
        """Record the seconds that a whole part took, and whether a reader waited for it."""
        self._durations_s.append(duration_s)
        self._waited += waited
        # Skip the parts that were in flight at the last change: they ran under other conditions.
        old = self.parts // 2
        if len(self._durations_s) < old + JUDGED * self.parts:
            return
        typical_s = median(self._durations_s[old:])
        waited_share = self._waited / len(self._durations_s)
        self._durations_s.clear()
        self._waited = 0
        self._decide(typical_s, waited_share)

    def _decide(self, typical_s: float, waited_share: float) -> None:
        if self._before is not None:
            parts, before_s = self._before
            self._before = None
            if typical_s > TOLERANCE * before_s:
                self.parts = parts
                self._pause = PAUSE_TURNS
                return
        if self._pause:
            self._pause -= 1
        elif (
            waited_share >= WAITED_SHARE
            and self.parts < self._most
            and self.parts / typical_s < FULL_SHARE * self._most / REQUEST_S
        ):
            self._before = self.parts, typical_s
            self.parts = min(self.parts * 3 // 2, self._most)


#: Past requests kept per size class; a class lies between two powers of two.
KIN = 64
#: With fewer requests, the slowest of twenty is unknown.
LEAST_KIN = 20
#: Requests after which the slowest of twenty is determined again.
JUDGED_KIN = 8
#: A request is late after this many times the duration of the slowest of twenty, but never earlier
#: than LEAST_LATE_S: a busy machine delays everything by some tens of milliseconds.
LATE_FACTOR = 3.0
LEAST_LATE_S = 0.1
#: The share of all requests that may be hedged.
HEDGED_SHARE = 0.02


class _Kin:
    """The last requests of one size class, and the time after which one is late."""

    def __init__(self) -> None:
        self.late_s = float("inf")
        self._durations_s: deque[float] = deque(maxlen=KIN)
        self._unjudged = 0

    def arrived(self, duration_s: float) -> None:
        """Record the seconds that a request took."""
        self._durations_s.append(duration_s)
        self._unjudged += 1
        # Sorting after each request would be most of the cost.
        if self._unjudged >= (LEAST_KIN if self.late_s == float("inf") else JUDGED_KIN):
            self._unjudged = 0
            slowest_of_twenty_s = sorted(self._durations_s)[len(self._durations_s) * 95 // 100]
            self.late_s = max(LATE_FACTOR * slowest_of_twenty_s, LEAST_LATE_S)


class Lateness:
    """When a request is late for its size, and whether it may be hedged."""

    def __init__(self) -> None:
        self._kin: defaultdict[int, _Kin] = defaultdict(_Kin)  # by bit length of the size
        self._allowed = 1.0  # hedges allowed now; fractions add up

    def arrived(self, size_bytes: int, duration_s: float) -> None:
        """Record the seconds that a request took."""
        self._allowed = min(self._allowed + HEDGED_SHARE, 10.0)
        self._kin[size_bytes.bit_length()].arrived(duration_s)

    def late_s(self, size_bytes: int) -> float:
        """Return the seconds after which a request is late; infinite if unknown."""
        kin = self._kin.get(size_bytes.bit_length())
        return float("inf") if kin is None else kin.late_s

    def hedge(self) -> bool:
        """Claim one hedge; True if the share of hedged requests allows it."""
        if self._allowed < 1.0:
            return False
        self._allowed -= 1.0
        return True
