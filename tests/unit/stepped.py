"""A stepped `FakeClient` and streams of it, within an `Interleaving`."""

import pytest

from mountpoint._fastpath import Part
from mountpoint.read.stream import ReadStream
from mountpoint.s3.retry import Attempts
from tests.unit.fake_client import FakeClient
from tests.unit.interleaving import Interleaving, Server


def answering(client: FakeClient, it: Interleaving) -> Server:
    """Return a server that answers the requests of a stepped client, not always in order."""

    def step() -> None:
        client.step(last_first=it.random.random() < 0.3)

    return (lambda: bool(client._waiting)), step


def waiting_in_python(patch: pytest.MonkeyPatch, it: Interleaving) -> None:
    """Let reads wait for their parts in the interleaving, and not in C."""
    time_for = ReadStream._time_for

    def wait(stream: ReadStream, part: Part, attempts: Attempts) -> float:
        left_s = time_for(stream, part, attempts)
        ended = it.wait_until(lambda: part.ready or part.failed, left_s)
        return left_s if ended else 0.0

    patch.setattr(ReadStream, "_time_for", wait)
