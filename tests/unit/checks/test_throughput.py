"""The measurement of throughput."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from mountpoint.checks.checklist import Result
from mountpoint.checks.subject import Objects
from mountpoint.checks.throughput import Measurement, measure, throughput
from mountpoint.config import (
    MIB,
)
from mountpoint.errors import AccessDenied, BadHandle, MountError, TransportFault
from mountpoint.s3.client import ObjectInfo
from tests.unit.checks.subjects import subject


class Stream:
    """A stream that delivers at its own speed, until it is closed."""

    def __init__(self, *, stops_at: int = 1 << 62, error: Exception | None = None) -> None:
        self._stops_at = stops_at
        self._error = error
        self._closed = threading.Event()
        self.asked: list[tuple[int, int]] = []
        self.reader: threading.Thread | None = None

    def open(self) -> None:
        self.reader = threading.current_thread()

    def read(self, offset: int, size: int) -> bytes:
        self.asked.append((offset, size))
        if offset >= self._stops_at:
            if self._error is not None:
                raise self._error
            self._closed.wait(30)
            raise BadHandle("closed")
        return bytes(size)

    def close(self) -> None:
        self._closed.set()


def measured(stream: Any, size_bytes: int, max_s: float) -> tuple[int, float, Any, list[int]]:
    steps: list[int] = []
    found = measure(stream, size_bytes, max_s, steps.append)
    assert stream._closed.is_set()
    assert stream.reader is not None
    assert not stream.reader.is_alive()
    return *found, steps


def test_all_that_was_asked_for_is_read_once() -> None:
    """The object is read once, in the kernel's steps, each of which is reported."""
    stream = Stream()
    size_bytes, seconds, error, steps = measured(stream, 5 * MIB // 2, 20)
    assert stream.asked == [(0, MIB), (MIB, MIB), (2 * MIB, MIB // 2)]
    assert (size_bytes, error, steps) == (5 * MIB // 2, None, [MIB, MIB, MIB // 2])
    assert seconds > 0


def test_a_slow_line_is_measured_by_arrived_bytes() -> None:
    """A slow line is measured by the bytes that arrive in time; the thread ends, too."""
    begun_s = time.monotonic()
    size_bytes, seconds, error, _ = measured(Stream(stops_at=2 * MIB), 64 * MIB, 0.2)
    assert (size_bytes, error) == (2 * MIB, None)
    assert seconds >= 0.2
    assert time.monotonic() - begun_s < 10


def test_a_read_that_fails_ends_it() -> None:
    """A failed read ends the measurement with its error."""
    fault = TransportFault("cut")
    size_bytes, _, error, _ = measured(Stream(stops_at=MIB, error=fault), 64 * MIB, 20)
    assert (size_bytes, error) == (MIB, fault)


def asked_for_throughput(
    monkeypatch: pytest.MonkeyPatch, size_bytes: int, error: Exception | None = None
) -> Result:
    """Return the result of a measurement."""
    asked: Any = subject()
    asked.client = object()
    asked.objects = Objects(large=ObjectInfo(b"big", 64 * MIB, 0, '"a"'))
    monkeypatch.setattr("mountpoint.checks.throughput.Streams", lambda *_: Streams())
    found = Measurement(size_bytes, 2.0, error)
    monkeypatch.setattr("mountpoint.checks.throughput.measure", lambda *_: found)
    return throughput(asked)


class Streams:
    """Creates no real stream."""

    def stream(self, info: ObjectInfo) -> None:
        """Return no stream."""


def test_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is in MB/s, beside the target; a partial read is a warning."""
    result = asked_for_throughput(monkeypatch, 64 * MIB)
    assert result.outcome == "ok"
    assert result.details["mb_per_s"] == 33.6
    assert result.details["aim_mb_per_s"] == 1250
    assert result.finding.startswith("34 MB/s: 64 MiB of 'big' in 2.0 s; ")
    slow = asked_for_throughput(monkeypatch, MIB)
    assert (slow.outcome, slow.details["mb_per_s"]) == ("warning", 0.5)
    with pytest.raises(MountError, match="'big' cannot be read: no") as caught:
        asked_for_throughput(monkeypatch, 0, AccessDenied("no", hint="ask"))
    assert caught.value.hint == "ask"


def test_nothing_large_enough() -> None:
    """Without a large object nothing is read."""
    asked = subject()
    asked.objects = Objects()
    asked.client = SimpleNamespace()  # type: ignore[assignment]
    assert throughput(asked).outcome == "skipped"
