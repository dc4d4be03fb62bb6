"""GETs on the native plane from a server that answers wrongly, slowly, or not at all.

A part is ready with exactly its bytes, or has failed. No answer writes outside of a block, and none
keeps one: `make asan` runs these tests with a sanitizer.
"""

import random
import threading
import time

import pytest

from mountpoint._fastpath import Part, PartMap
from mountpoint.errors import Interrupted, OperationError, TransportFault
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.crt.client import CrtClient
from tests.soak import seeds
from tests.unit.native.building import probe
from tests.unit.s3.crt.native.faulty_server import (
    DATA,
    ETAG,
    RIGHT,
    SAFE_S,
    VERSION,
    WRONG,
    Server,
    connected,
    needs_native_plane,
)

KIB = 1024
#: Blocks of parts this large count as held; those of 10 KiB come from malloc.
SIZES = (10 * KIB, 300 * KIB)

pytestmark = needs_native_plane


def send(client: CrtClient, start: int, stop: int) -> Part:
    part = Part(start, stop, ETAG)
    part.attach(client.get(VERSION, start, stop, part))
    return part


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fault", [*RIGHT, *WRONG])
def test_answers(server: Server, fault: str, size: int) -> None:
    """A part has exactly its bytes, or has failed."""
    server.fault = fault
    with connected(server) as client:
        parts = [send(client, start, start + size) for start in (0, 1234, len(DATA) - size)]
        parts.append(send(client, 0, len(DATA)))
        for part in parts:
            assert part.wait(SAFE_S)
            if part.ready:
                assert bytes(part.data) == DATA[part.start : part.stop]
            else:
                assert fault in WRONG
                assert isinstance(part.error, OperationError)
                assert part.data is None
        del parts, part


@pytest.mark.parametrize("fault", [*RIGHT, *WRONG])
def test_lane(server: Server, fault: str) -> None:
    """So has a read at a random place, which the lane fetches."""
    server.fault = fault
    with connected(server) as client:
        parts = PartMap(len(DATA))
        source = client.lane_source(VERSION)
        assert source is not None
        for place in (5_000, 500_000, len(DATA) - 10):
            parts.allow_random(source, [(250_000, 250_001), (800_000, 800_001)], 5, 60.0, SAFE_S)
            pieces, data, _ = probe().read(parts, place, 100)
            assert bool(pieces) == (fault in RIGHT)
            assert not pieces or data == DATA[place : place + 100]
        parts.take_random()


def test_cancelled_in_the_middle(server: Server) -> None:
    """The CRT may write into the memory of a cancelled part, which nobody else has then."""
    server.go.clear()
    with connected(server) as client:
        parts = [send(client, 0, 300 * KIB) for _ in range(8)]
        time.sleep(0.1)
        for part in parts:
            part.cancel()
            assert part.failed
        del parts, part
        blocks = [probe().filled(b"mine" * 75 * KIB) for _ in range(8)]
        server.go.set()
        time.sleep(0.1)
        for block in blocks:
            assert bytes(probe().block_view(block, 300 * KIB)) == b"mine" * 75 * KIB
            probe().block_release(block)


def test_closed_in_the_middle(server: Server) -> None:
    """A client that is closed interrupts all parts; the reads that wait wake."""
    server.go.clear()
    with connected(server) as client:
        parts = [send(client, 0, 300 * KIB) for _ in range(4)]
        threading.Timer(0.05, client.close).start()
        for part in parts:
            assert part.wait(SAFE_S)
            assert isinstance(part.error, Interrupted)


def test_without_memory(server: Server) -> None:
    """A part for which there is no memory fails, and can be tried again."""
    with connected(server) as client:
        client._part_bytes = 1 << 50  # no block is as large
        part = Part(0, 1 << 40, ETAG)
        part.attach(client.get(ObjectInfo(b"key", 1 << 41, 0, ETAG), 0, 1 << 40, part))
        assert part.wait(0)
        assert isinstance(part.error, TransportFault)
        assert part.error.retryable
    assert server.asked == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(fixed=0, drawn=1).values(), ids=seeds(fixed=0, drawn=1))
def test_many(server: Server, seed: int) -> None:
    """Threads that send, hedge and cancel at any moment, and answers of all kinds."""
    drawn = random.Random(seed)
    server.random = random.Random(seed + 1)
    with connected(server) as client:
        until_s = time.monotonic() + 2.0

        def work() -> None:
            while time.monotonic() < until_s:
                start = drawn.randrange(len(DATA) - SIZES[1])
                stop = start + drawn.choice(SIZES)
                part = send(client, start, stop)
                hedge = None
                if drawn.random() < 0.5:
                    hedge = Part(start, stop, ETAG)
                    hedge.serve(part)
                    hedge.attach(client.get(VERSION, start, stop, hedge))
                if drawn.random() < 0.3:
                    time.sleep(drawn.random() * 0.005)
                    part.cancel()
                elif not part.wait(SAFE_S):
                    wrong.append("a part hangs")
                if part.ready and bytes(part.data or b"") != DATA[start:stop]:
                    wrong.append(f"other bytes of [{start}, {stop})")
                if hedge is not None:
                    hedge.cancel()

        wrong: list[str] = []
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
