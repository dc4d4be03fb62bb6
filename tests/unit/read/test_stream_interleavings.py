"""Streams that are read, answered, swept and closed by several threads, in many orders."""

import contextlib
import random
import threading

import pytest

from mountpoint.config import ReadConfig
from mountpoint.errors import BadHandle, Interrupted, TransportFault
from mountpoint.read.streams import Streams
from mountpoint.s3.retry import RetryPolicy
from tests.unit.fake_client import SAFE_S, FakeClient, Fault
from tests.unit.interleaving import Interleaving, explore
from tests.unit.stepped import answering, waiting_in_python

MIB = 1 << 20
DATA = random.Random(1).randbytes(5 * MIB)
SIZES = [1, 4096, 131072, MIB]


def test_reads_answers_sweeps_and_a_close() -> None:
    """Each read has the right bytes or says why not; all memory is returned, and no wait is vain.

    There is too little memory for all, so that parts are smaller, and refused.
    """

    def run(it: Interleaving) -> None:
        with (
            FakeClient({b"a": DATA}, stepped=True) as client,
            pytest.MonkeyPatch.context() as patch,
        ):
            waiting_in_python(patch, it)
            policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event())
            streams = Streams(client, ReadConfig(memory_bytes=3 * MIB), policy)
            if it.random.random() < 0.5:
                client.inject("get", Fault(error=TransportFault("broken")))
            one, two = (streams.stream(client.info(b"a")) for _ in range(2))
            one.open_unasked()
            two.open_unasked()

            def reading(count: int) -> None:
                stream = it.random.choice([one, two])
                places = [it.random.choice([0, MIB, it.random.randrange(len(DATA))])]
                places += [places[0] + MIB] * (count - 1)
                for place in places:
                    size = it.random.choice(SIZES)
                    with contextlib.suppress(BadHandle, Interrupted):  # it was closed
                        found = bytes(memoryview(stream.read(place, size)))
                        assert found == DATA[place : place + size]

            def sweeping() -> None:
                for _ in range(3):
                    streams.sweep()
                one.close()

            it.run(
                lambda: reading(2),
                lambda: reading(1),
                sweeping,
                servers=[answering(client, it)] * 2,
            )
            two.close()
            assert streams.budget.held_bytes == 0
            assert it.waited_s <= 1.0, "more than the pauses before retries"

    explore(run, 100)
