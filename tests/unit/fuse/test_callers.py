"""Requests of killed programs: one thread answers each, whichever comes first."""

import errno
import os
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mountpoint.fuse import _callers
from tests.unit.native import building

#: Numbers of requests, linux/fuse.h.
LOOKUP, FORGET, OPEN, WRITE, RELEASE, FSYNC, FLUSH = 1, 2, 14, 16, 18, 20, 25
#: struct fuse_out_header
ANSWER = struct.Struct("<IiQ")
SERVERS = 3
REQUESTS = 400


class Device:
    """A file in the place of /dev/fuse."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("device")

    def answers(self) -> list[tuple[int, int]]:
        """Return the requests that were answered, each with its errno."""
        written = os.pread(self.descriptor, 1 << 20, 0)
        found = list(ANSWER.iter_unpack(written))
        assert all(length == ANSWER.size for length, _, _ in found)
        return [(unique, -error) for _, error, unique in found]


@pytest.fixture
def probe() -> Iterator[Any]:
    """The C functions; this thread serves no request at the end."""
    it = building.probe()
    yield it
    it.end_request()


@pytest.fixture
def device() -> Iterator[Device]:
    it = Device()
    yield it
    os.close(it.descriptor)


def test_a_request_is_in_progress_until_the_next_one(probe: Any) -> None:
    """It is listed with its thread, until the thread that serves it has answered."""
    assert _callers.waiting() == []
    probe.begin_request(OPEN, 100, 7, 5)
    assert _callers.waiting() == [(100, 7, 0)]
    probe.begin_request(LOOKUP, 102, 8, 5)
    assert _callers.waiting() == [(102, 8, 0)]
    probe.end_request()
    assert _callers.waiting() == []


@pytest.mark.parametrize("opcode", [WRITE, FSYNC, FLUSH])
def test_writers_have_a_handle(probe: Any, opcode: int) -> None:
    """For a request that writes, the file is known."""
    probe.begin_request(opcode, 100, 7, 5)
    assert _callers.waiting() == [(100, 7, 5)]


@pytest.mark.parametrize("opcode", [FORGET, RELEASE])
def test_nobody_waits(probe: Any, opcode: int) -> None:
    """A request without a program that waits is not listed."""
    probe.begin_request(opcode, 100, 7, 5)
    assert _callers.waiting() == []
    assert _callers.claim()


def test_abandoned(probe: Any, device: Device) -> None:
    """Another thread answers with EINTR, once; the thread that serves it does not."""
    probe.begin_request(OPEN, 100, 7, 0)
    assert not _callers.abandon(device.descriptor, 98)
    assert not _callers.is_abandoned()
    assert _callers.abandon(device.descriptor, 100)
    assert _callers.is_abandoned()
    assert not _callers.claim()
    assert _callers.waiting() == []
    assert not _callers.abandon(device.descriptor, 100)
    assert device.answers() == [(100, errno.EINTR)]
    probe.end_request()
    probe.begin_request(OPEN, 102, 7, 0)
    assert not _callers.is_abandoned()
    assert _callers.claim()


def test_claimed(probe: Any, device: Device) -> None:
    """A request that its own thread is about to answer is answered by no other."""
    probe.begin_request(OPEN, 100, 7, 0)
    assert _callers.claim()
    assert not _callers.abandon(device.descriptor, 100)
    assert _callers.waiting() == []
    assert not _callers.is_abandoned()
    assert device.answers() == []


def test_threads(probe: Any, device: Device) -> None:
    """Each request is answered once, although two threads abandon what they see."""
    over = threading.Event()

    def serve(server: int) -> set[int]:
        claimed = set()
        for number in range(REQUESTS):
            unique = 2 * (server * REQUESTS + number) + 1000
            probe.begin_request(OPEN, unique, 7, 0)
            if _callers.claim():
                claimed.add(unique)
            probe.end_request()
        return claimed

    def abandon() -> set[int]:
        abandoned = set()
        while not over.is_set():
            for unique, thread, handle in _callers.waiting():
                assert (thread, handle) == (7, 0)
                if _callers.abandon(device.descriptor, unique):
                    abandoned.add(unique)
        return abandoned

    with ThreadPoolExecutor(SERVERS + 2) as pool:
        abandoning = [pool.submit(abandon) for _ in range(2)]
        serving = [pool.submit(serve, server) for server in range(SERVERS)]
        try:
            claimed = [each.result() for each in serving]
        finally:
            over.set()
        abandoned = [each.result() for each in abandoning]
    answered = [unique for some in (*claimed, *abandoned) for unique in some]
    assert sorted(answered) == [2 * number + 1000 for number in range(SERVERS * REQUESTS)]
    assert sorted(unique for unique, _ in device.answers()) == sorted(set.union(*abandoned))
