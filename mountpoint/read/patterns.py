"""What the reads of one handle look like: sequential runs, strides, jumps. Pure.

`readahead` decides from that how far to fetch.
"""

from collections import deque
from dataclasses import dataclass

Range = tuple[int, int]

PAGE_BYTES = 4096

#: A sequential reader has several reads in flight at once (kernel read-ahead, large reads with
#: O_DIRECT, io_uring queues). They arrive in any order, up to this many positions off.
JITTER_READS = 4

#: After this many jumps and returns, the counts of both are halved.
COUNTED_TURNS = 128

#: The number of last runs that determine the usual length.
LAST_LENGTHS = 8

#: The most pieces of a stride to fetch ahead, so that a short stride costs little.
MAX_PIECES = 32


@dataclass(slots=True)
class Run:
    """One sequential reader. A backward one is mirrored: its positions count from the end.

    Invariants: start <= cursor <= fetched <= size of the object; ahead >= 0.
    """

    start: int  # its first position
    cursor: int  # the end of its furthest read
    fetched: int  # the end of what has been planned for it
    ahead: int  # how far beyond the cursor to fetch
    used: int  # the number of the last plan made for it
    largest: int  # the size of its largest read
    before: int = 0  # bytes read of the object when it began
    backward: bool = False

    @property
    def length(self) -> int:
        """The bytes that it has passed."""
        return self.cursor - self.start

    @property
    def slack(self) -> int:
        """The distance at which a read still belongs to it.

        At most half of what it has read, so that two reads do not claim everything nearby.
        """
        return min(JITTER_READS * self.largest, self.length // 2)

    def holds(self, begin: int, skips: int) -> bool:
        """Whether a read belongs to it, if the run may skip up to `skips` bytes."""
        if self.ahead == 0:  # usually after a single read: the second must follow it
            return self.cursor - PAGE_BYTES <= begin <= self.cursor + skips
        reach = max(self.slack, skips)
        return self.cursor - self.slack <= begin <= max(self.fetched, self.cursor + reach)

    def leaps(self, begin: int, skips: int) -> bool:
        """Whether a read that it holds skipped more than that, into bytes fetched before."""
        return begin > self.cursor + max(self.slack, PAGE_BYTES, skips)


@dataclass(slots=True)
class Stride:
    """The last read outside of all runs, and its distance from the previous one."""

    offset: int = -1
    size: int = 0
    distance: int = 0
    hits: int = 0  # reads at this distance, after the two that established it
    ahead: int = 0  # pieces planned beyond `offset`
    read: int = 0  # reads at the distance of the two before, of all strides
    left: int = 0  # pieces that were planned and not read

    def hit(self, offset: int, size: int) -> bool:
        """Take the next read; True if it is where the stride expects it."""
        distance = offset - self.offset
        apart = abs(distance) >= size + 2 * PAGE_BYTES  # no page belongs to two pieces
        expected = apart and self.offset >= 0 and size == self.size and distance == self.distance
        if expected:
            self.hits += 1
            self.read += 1
            self.ahead = max(self.ahead - 1, 0)
        else:
            self.left += self.ahead
            self.hits = self.ahead = 0
        self.offset, self.size, self.distance = offset, size, distance
        return expected

    def earned(self) -> int:
        """Return how many pieces to fetch ahead: soon many, but once some were left unread no more
        than a quarter of what has been read.
        """
        fast = min(1 << self.hits, MAX_PIECES)
        if self.left == 0:
            return fast
        return min(fast, max(self.read // 4 - self.left, self.hits // 4))

    def reach(self) -> Range:
        """Return the range from the last read to the last piece planned."""
        last = self.offset + self.ahead * self.distance
        return min(self.offset, last), max(self.offset, last) + self.size


class Jumps:
    """Whether the reader leaves its runs for good, like a Parquet or zip reader.

    The object has `size_bytes`.
    """

    def __init__(self, size_bytes: int) -> None:
        # constants
        self._size = size_bytes
        # mutable
        self._jumps = 0  # runs begun
        self._returns = 0  # reads that went back to another run than the last
        self._lengths: deque[int] = deque(maxlen=LAST_LENGTHS)  # of finished runs

    @property
    def usual(self) -> bool:
        """Whether jumps are usual. Two jumps are only a footer or header."""
        return self._jumps > 1 + self._returns

    @property
    def usual_length(self) -> int:
        """The length in bytes that all of the last runs reached."""
        return min(self._lengths, default=0)

    def left(self, run: Run) -> None:
        """Note that the reader has left a run. One that came to the end could not go further."""
        if run.length and run.cursor < self._size:
            self._lengths.append(run.length)
        self._jumps += 1
        self._halve()

    def returned(self) -> None:
        """Note a read that went back to another run than the last."""
        self._returns += 1
        self._halve()

    def _halve(self) -> None:
        if self._jumps + self._returns >= COUNTED_TURNS:
            self._jumps //= 2
            self._returns //= 2
