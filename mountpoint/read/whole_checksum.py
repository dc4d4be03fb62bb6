"""Compare a file that is read whole with the checksum that S3 has of the whole object.

S3 has no checksum of most ranges of a large object, but often one of all of it (type FULL_OBJECT).
A CRC of the whole can be put together from those of its parts, so each part's is computed once,
and when the parts that readers have reached are all of the object the result is compared.

Which CRC it has to be is asked with one HEAD, while reading goes on. Parts that arrive after
the answer are summed by the client's thread, while their bytes are in the processor's cache;
those before it by their first reader, with every CRC that S3 may answer.

Of bytes that are fetched twice those of the larger range count. A file that is read here and there
is given up after a few parts.
"""

import threading
from concurrent.futures import Future
from typing import NamedTuple

import structlog

from mountpoint._fastpath import Part
from mountpoint.errors import OperationError
from mountpoint.read.readahead import MIB
from mountpoint.s3.client import ObjectClient, ObjectInfo, Stored
from mountpoint.s3.wire.checksum import CRCS, Expected, crc_matches, expected_of_whole

log = structlog.get_logger(__name__)

#: A file that has been read in so many places, apart from each other, is not being read whole. A
#: merge of sixteen sorted runs is the most that is read in order at the same time.
MOST_PLACES = 16

#: Several CRCs at once cost 0.5 CPU-seconds per GB. So much is summed before anybody has asked
#: (the reader does not come from the start), and so much before the answer has come.
MOST_UNASKED_BYTES = 32 * MIB
MOST_UNANSWERED_BYTES = 256 * MIB

#: CRCs by name.
Sums = dict[str, int]


class _Place(NamedTuple):
    """A range that readers have reached, and its CRCs."""

    start: int
    stop: int
    sums: Sums


class WholeChecksum:
    """The comparison of one open object. Thread-safe; only `check` waits.

    Invariant: places are in order, and neither overlap nor touch each other.
    """

    def __init__(self, client: ObjectClient, info: ObjectInfo, wait_s: float) -> None:
        # dependencies
        self._client = client
        # constants
        self._info = info
        self._wait_s = wait_s
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._answer: Future[Stored] | None = None
        self._expected: Expected | None = None
        self._places: list[_Place] = []
        self._names: tuple[str, ...] = tuple(CRCS)  # none: there is nothing to compare

    @property
    def asked(self) -> bool:
        """Whether S3 has been asked, or need not be."""
        return self._answer is not None or not self._names

    @property
    def front(self) -> int:
        """How far the object has been reached from its start, without a gap."""
        places = self._places
        return places[0].stop if places and places[0].start == 0 else 0

    def ask(self) -> None:
        """Ask S3 which checksum the object has."""
        with self._lock:
            if not self.asked:
                self._answer = self._client.describe(self._info.key)

    def sums(self, data: bytes) -> Sums | None:
        """Return the CRCs of a part that has arrived; None while it is not known which."""
        names = self._wanted()
        return _sums(names, data) if len(names) == 1 else None

    def add(self, part: Part) -> None:
        """Note that a reader has reached a part, which is ready."""
        names = self._wanted()
        if (part.start, part.stop) == (0, self._info.size_bytes):
            self.give_up()  # its own checksum is that of the whole
        elif names:
            place = _Place(part.start, part.stop, part.sums or _sums(names, part.data))
            with self._lock:
                self._insert(place)

    def check(self) -> str | None:
        """Return the name of the checksum that does not match, once all has been read.

        Waits for what S3 answers; where that does not come the file is not compared.
        """
        with self._lock:
            places, answer = self._places, self._answer
            if len(places) != 1 or places[0][:2] != (0, self._info.size_bytes):
                return None
            if answer is None:
                return None
            self._places = []
        try:
            answer.result(self._wait_s)
        except (OperationError, TimeoutError) as error:
            log.debug("a whole file was not compared", key=self._info.key, reason=str(error))
        self._wanted()
        expected = self._expected
        self.give_up()
        if expected is None or crc_matches(expected, places[0].sums[expected.name]):
            return None
        return expected.name

    def give_up(self) -> None:
        """Compare nothing."""
        with self._lock:
            self._names, self._places = (), []
            answer = self._answer
        if answer is not None:
            answer.cancel()

    def _wanted(self) -> tuple[str, ...]:
        """Return which CRCs to compute, by what S3 has answered so far."""
        with self._lock:
            answer = self._answer
            if self._expected is None and self._names and answer is not None and answer.done():
                failed = answer.cancelled() or answer.exception() is not None
                stored = None if failed else answer.result()
                if stored is not None and stored.info.etag == self._info.etag:
                    self._expected = expected_of_whole(stored)
                self._names = () if self._expected is None else (self._expected.name,)
            return self._names

    def _insert(self, place: _Place) -> None:
        """Add a range to those that it touches, in place of those within it (lock held).

        One that overlaps others is left out: what it has beyond them stays a gap.
        """
        start, stop = place.start, place.stop
        others = [each for each in self._places if not start <= each.start < each.stop <= stop]
        if any(each.start < stop and start < each.stop for each in others):
            return
        for each in [each for each in others if stop == each.start or each.stop == start]:
            others.remove(each)
            place = _joined(each, place) if each.start < start else _joined(place, each)
        places = self._places = sorted([*others, place], key=lambda each: each.start)
        most_bytes = MOST_UNASKED_BYTES if self._answer is None else MOST_UNANSWERED_BYTES
        reached_bytes = sum(each.stop - each.start for each in places)
        too_much = self._expected is None and reached_bytes > most_bytes
        if too_much or len(places) > MOST_PLACES:
            self._names, self._places = (), []


def _sums(names: tuple[str, ...], data: bytes) -> Sums:
    return {name: CRCS[name].of(data, 0) for name in names}


def _joined(first: _Place, second: _Place) -> _Place:
    size = second.stop - second.start
    sums = {
        name: CRCS[name].combine(value, second.sums[name], size)
        for name, value in first.sums.items()
        if name in second.sums
    }
    return _Place(first.start, second.stop, sums)
