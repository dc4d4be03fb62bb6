"""A source of bytes that ends the arrivals of parts as the native plane does; tests say how.

A `FakeGet` keeps a reference to its arrival and its block until `FakeSource.finish`, which checks
that nobody else has one any more.
"""

import gc
import threading
from concurrent.futures import Future
from typing import Any

from mountpoint._fastpath import Part
from mountpoint.errors import (
    BadAnswer,
    Interrupted,
    OperationError,
    PreconditionFailed,
    TransportFault,
)
from mountpoint.native._lane import LaneSource
from mountpoint.s3.client import BodySink, ObjectInfo, Stored, Transfer

READY, FAILED = 1, 2

#: How an answer may be. Python must judge those in doubt, also `unusual`, which is right.
RIGHT, UNUSUAL, SHORT, LONG, VERSION, REFUSED = (
    "right",
    "unusual",
    "short",
    "long",
    "version",
    "refused",
)
ANSWERS = (RIGHT, UNUSUAL, SHORT, LONG, VERSION, REFUSED)


class FakeGet:
    """One request; see `plane.NativeDownload`. The test plays the CRT's threads."""

    def __init__(self, source: "FakeSource", start: int, stop: int, sink: Part) -> None:
        self._source = source
        self._probe = source.probe
        self._range = slice(start, stop)
        self._lock = threading.RLock()
        self._sink: Part | None = sink
        self.arrival = self._probe.arrival_of(sink)
        self.block = self._probe.filled(b"\xee" * (stop - start))
        self._answer = ""  # once it has ended
        self._settled = False
        self.cancelled = False

    @property
    def ended(self) -> bool:
        return bool(self._answer)

    def describe(self) -> None:
        """Let the headers arrive."""
        with self._lock:
            if not self._answer:
                self._probe.arrival_describe(self.arrival)

    def answer(self, how: str) -> None:
        """End the request on the native side, once."""
        with self._lock:
            if self._answer:
                return
            if how in (RIGHT, UNUSUAL) and self._source.replaced:
                how = VERSION
            self._answer = how
            data = self._source.data[self._range]
            if how == SHORT:
                data = data[: len(data) // 2]
            elif how not in (RIGHT, UNUSUAL):
                data = data[::-1]
            self._probe.fill(self.block, data)
        if how == RIGHT:
            self._probe.arrival_end(self.arrival, READY, self.block)
        elif how == REFUSED:
            self._probe.arrival_end(self.arrival, FAILED)
        else:
            self._probe.arrival_doubt(self.arrival)

    def info(self) -> ObjectInfo:
        """Return the description in the headers."""
        if self._answer == VERSION:
            return ObjectInfo(self._source.info.key, self._source.info.size_bytes, 0, '"other"')
        return self._source.info

    def cancel(self) -> None:
        """Ask to end it: it ends later, and with any answer."""
        self.cancelled = True

    def settle(self) -> None:
        """Do what Python does when it has ended."""
        with self._lock:
            if not self._answer or self._settled:
                return
            self._settled = True
            failure = self._failure()
            if failure is None and self._answer == UNUSUAL:
                self._probe.arrival_end(self.arrival, READY, self.block)
            self.interrupt(failure)

    def interrupt(self, error: OperationError | None) -> None:
        """Deliver an end to the sink, once; the request itself may go on."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.settled(error)

    def _failure(self) -> OperationError | None:
        if self._answer == VERSION:
            return PreconditionFailed("another version")
        if self._answer in (SHORT, LONG):
            return BadAnswer(f"a {self._answer} answer")
        if self._answer == REFUSED:
            return Interrupted("cancelled") if self.cancelled else TransportFault("refused")
        return None


class FakeSource:
    """A `ByteSource` of one object. `auto`: answers are right, and faster than `get` returns."""

    verifies = False

    def __init__(self, probe: Any, data: bytes) -> None:
        self.probe = probe
        self.data = data
        self.info = ObjectInfo(b"k", len(data), 0, '"e"')
        self.auto = False
        self.replaced = False  # there is a newer version
        self.fetches = 0  # by lanes
        self._lock = threading.Lock()
        self._gets: list[FakeGet] = []

    def get(self, version: ObjectInfo, start: int, stop: int, sink: BodySink) -> Transfer:
        assert isinstance(sink, Part)
        it = FakeGet(self, start, stop, sink)
        with self._lock:
            self._gets.append(it)
        if self.auto:
            it.answer(RIGHT)
        return it

    def lane_source(self, version: ObjectInfo) -> LaneSource | None:
        source: LaneSource = self.probe.Source(self._fetch)
        return source

    def head_with_checksums(self, key: bytes) -> "Future[Stored]":
        raise NotImplementedError

    def _fetch(self, start: int, stop: int, thread: int, timeout_s: float) -> int:
        self.fetches += 1
        if self.replaced:
            return 0
        block: int = self.probe.filled(self.data[start:stop])
        return block

    def pending(self) -> list[FakeGet]:
        """The requests that have not ended."""
        with self._lock:
            return [get for get in self._gets if not get.ended]

    def settle(self) -> None:
        """Settle all requests that have ended, as the plane's thread does."""
        with self._lock:
            gets = list(self._gets)
        for get in gets:
            get.settle()

    def finish(self, how: str = REFUSED) -> None:
        """End and settle all requests; check that nothing refers to their memory any more."""
        for get in self.pending():
            get.answer(how)
        self.settle()
        gc.collect()
        left = [get for get in self._gets if self.probe.arrival_refs(get.arrival) > 1]
        for get in reversed(self._gets):
            self.probe.arrival_release(get.arrival)
        kept = [get for get in self._gets if self.probe.block_refs(get.block) > 1]
        for get in self._gets:
            self.probe.block_release(get.block)
        assert not left, f"{len(left)} of {len(self._gets)} arrivals are left"
        assert not kept, f"{len(kept)} of {len(self._gets)} blocks are left"
