"""Decide from past durations how many parts to have in flight. Pure: durations are passed in.

On a fast link eight parts are enough, and more would only queue in our memory. Where each
connection has its own limit (S3 gives one about 90 MB/s), more connections are faster. The duration
of a part shows which case it is. If one more part in flight slows all of them down, they share a
bottleneck; if not, there is room. So while readers wait, the controller tries half as many parts
again, and keeps them if a part then takes about as long as before.
"""

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


class ConcurrencyController:
    """Sets the number of parts in flight of all readers, or of all uploads.

    `parts` lies between `BASE_PARTS` and `max_parts`.
    """

    def __init__(self, max_parts: int) -> None:
        # constants
        self._max_parts = max(max_parts, BASE_PARTS)
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
        typical_s = _median(self._durations_s[old:])
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
            and self.parts < self._max_parts
            and self.parts / typical_s < FULL_SHARE * self._max_parts / REQUEST_S
        ):
            self._before = self.parts, typical_s
            self.parts = min(self.parts * 3 // 2, self._max_parts)


def _median(values: list[float]) -> float:
    """Return the median. Importing `statistics` takes as long as ten of our modules."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return (ordered[half] + ordered[~half]) / 2
