"""How many bytes to have in flight, and when a request is late: learnt from the others. Pure.

How much: on a fast line eight parts are enough, and more only queue up, in our memory. Where each
connection has its own limit (S3 gives one about 90 MB/s) more of them are what makes it
faster. The difference shows in how long a part takes: does one more in flight make all of them
slower, they share a bottleneck; does it not, there is room. So where readers wait, `Flight`
tries half as many again, and keeps them if parts then take about as long as before.

When: of requests of about the same size, one that takes several times as long as nearly all
others is stuck rather than slow, and a second one for the same bytes is mostly faster.
`Lateness` says how long that is, and how many such requests are allowed.

Neither has a clock: durations are handed in.
"""

from collections import defaultdict, deque
from statistics import median

from mountpoint.config import REQUEST_S

#: 8 parts of 8 MiB were best on two cores without latency: 4 were 15 % slower, 16 as fast.
BASE_PARTS = 8

#: Trying is worth it when so many parts were waited for. Not all are, even where the line is what
#: limits: parts that are in flight together come together.
WAITED_SHARE = 0.2
#: Three parts where there were two may take so many times as long at most. Were there a
#: common bottleneck, it would be 1.5.
TOLERANCE = 1.12
#: Parts that a judgement takes, for each that is in flight. On a busy machine, where durations are
#: off by a third, the median of eight is good by chance too often, and that adds up: 12 parts in
#: flight in the mean on a line that eight fill; with twice as many to judge by, nine.
JUDGED = 2
#: With this share of what the line is said to bring there is no more to be gained.
FULL_SHARE = 0.9
#: After a try that did not help, so many turns go by until the next.
PAUSE_TURNS = 32


class Flight:
    """How many parts all readers together may have ahead: between `BASE_PARTS` and `most_parts`."""

    def __init__(self, most_parts: int) -> None:
        # constants
        self._most = max(most_parts, BASE_PARTS)
        # mutable
        self.parts = BASE_PARTS
        self._before: tuple[int, float] | None = None  # parts and duration before this try
        self._pause = 0
        self._durations_s: list[float] = []
        self._waited = 0

    def arrived(self, duration_s: float, *, waited: bool) -> None:
        """Note how long a whole part took, and whether a reader had to wait for it."""
        self._durations_s.append(duration_s)
        self._waited += waited
        # What was under way at the last change was made under other conditions.
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


#: Kin are requests of a size between the same powers of two.
KIN = 64
#: Fewer say nothing about the slowest of twenty.
LEAST_KIN = 20
#: After so many more it is looked at again who is the slowest of twenty.
JUDGED_KIN = 8
#: Late is what takes so many times as long as the slowest of twenty, and never less than this:
#: a machine that is busy delays everything by some tens of milliseconds.
LATE_FACTOR = 3.0
LEAST_LATE_S = 0.1
#: Requests that may be made twice, of all.
HEDGED_SHARE = 0.02


class _Kin:
    """Requests of about one size: the last of them, and when such a one is late."""

    def __init__(self) -> None:
        self.late_s = float("inf")
        self._durations_s: deque[float] = deque(maxlen=KIN)
        self._unjudged = 0

    def arrived(self, duration_s: float) -> None:
        """Note how long one took."""
        self._durations_s.append(duration_s)
        self._unjudged += 1
        # Sorting for each would be most of the cost.
        if self._unjudged >= (LEAST_KIN if self.late_s == float("inf") else JUDGED_KIN):
            self._unjudged = 0
            slowest_of_twenty_s = sorted(self._durations_s)[len(self._durations_s) * 95 // 100]
            self.late_s = max(LATE_FACTOR * slowest_of_twenty_s, LEAST_LATE_S)


class Lateness:
    """When a request is late for its size, and whether it may be made a second time."""

    def __init__(self) -> None:
        self._kin: defaultdict[int, _Kin] = defaultdict(_Kin)  # by bits of the size
        self._allowed = 1.0  # hedges; fractions add up

    def arrived(self, size_bytes: int, duration_s: float) -> None:
        """Note how long a request took."""
        self._allowed = min(self._allowed + HEDGED_SHARE, 10.0)
        self._kin[size_bytes.bit_length()].arrived(duration_s)

    def late_s(self, size_bytes: int) -> float:
        """Return from when on a request is late; infinite while nothing is known."""
        kin = self._kin.get(size_bytes.bit_length())
        return float("inf") if kin is None else kin.late_s

    def hedge(self) -> bool:
        """Ask for one more request to be made twice; True if that is within the share."""
        if self._allowed < 1.0:
            return False
        self._allowed -= 1.0
        return True
