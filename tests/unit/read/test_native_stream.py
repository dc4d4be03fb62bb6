"""Streams and their lanes over a source that answers as the native plane does.

Reads run in threads, first in the lane and then in the stream, as the kernel's do. Whatever happens
meanwhile, in any order: a read returns exactly the object's bytes, or an error. At the end no
memory is left, and the budget is empty.
"""

import gc
import os
import random
import threading
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from mountpoint.config import ReadConfig
from mountpoint.errors import Interrupted, OperationError
from mountpoint.metrics.counters import Counters
from mountpoint.native import _blocks
from mountpoint.read.stream import ReadStream
from mountpoint.s3.retry import RetryPolicy
from mountpoint.transfer.memory_budget import Budget
from mountpoint.transfer.stats import TransferStats
from tests.soak import TIMES, examples, seeds
from tests.unit.native.building import probe
from tests.unit.native.fake_source import ANSWERS, RIGHT, FakeSource

KIB = 1024
#: Larger than the blocks from malloc, so that `held_bytes` counts them.
PART = 96 * KIB
SIZE = 20 * PART + 1234
DATA = os.urandom(SIZE)
MEMORY = 6 * PART
PAGE = 4 * KIB
#: Protection against a hang, not a measure of speed.
SAFE_S = 60.0

pytestmark = pytest.mark.usefixtures("short_pauses")


class EagerStats(TransferStats):
    """Statistics by which every request may be late, if the test wants that, and hedged."""

    late = False

    def late_s(self, size_bytes: int) -> float:
        return 0.002 if self.late else float("inf")

    def hedge(self) -> bool:
        return True


class World:
    """A source, a budget, and one stream; reads in threads."""

    def __init__(self, *, stall_s: float, total_s: float) -> None:
        gc.collect()
        self.used = _blocks.held_bytes()[0]
        self.source = FakeSource(probe(), DATA)
        self.budget = Budget(MEMORY)
        self.other = self.budget.lease()
        self.stats = EagerStats(self.budget, Counters(), part_bytes=PART, max_bytes=8 * PART)
        self.config = ReadConfig(PART, MEMORY, stall_s, total_s)
        self.stopping = threading.Event()
        self.policy = RetryPolicy(try_s=stall_s, total_s=total_s, stopping=self.stopping)
        self.threads: list[threading.Thread] = []
        self.wrong: list[str] = []
        self.right = 0

    def stream(self) -> ReadStream:
        stream = ReadStream(
            self.source,
            self.source.info,
            initial_bytes=PART,
            config=self.config,
            budget=self.budget,
            stats=self.stats,
            retry_policy=self.policy,
            on_begin=lambda _: None,
            on_close=lambda _: None,
        )
        stream.open_unasked()
        return stream

    def read(self, stream: ReadStream, offset: int, size: int) -> None:
        """Read as the channel does, and compare."""
        try:
            pieces, lane_data, _ = self.source.probe.read(stream.lane, offset, size)
            data = lane_data if pieces else bytes(memoryview(stream.read(offset, size)))
        except OperationError:
            return
        except BaseException as error:
            self.wrong.append(f"[{offset}, {offset + size}): {error!r}")
            return
        if data == DATA[offset : offset + size]:
            self.right += 1
        else:
            self.wrong.append(f"[{offset}, {offset + size}): other bytes, {len(data)} of them")

    def start(self, work: threading.Thread) -> None:
        self.threads.append(work)
        work.start()

    def running(self) -> int:
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        return len(self.threads)

    def end(self, *streams: ReadStream) -> None:
        """Answer what is left, and check that nothing remains."""
        self.source.auto = True
        limit_s = time.monotonic() + SAFE_S
        while self.running() and time.monotonic() < limit_s:
            for get in self.source.pending():
                get.answer(RIGHT)
            self.source.settle()
            time.sleep(0.001)
        assert not self.running(), "a read hangs"
        assert not self.wrong, self.wrong
        lanes = [self.source.probe.lane_of(stream.lane) for stream in streams]
        for stream in streams:
            stream.close()
        self.other.give(self.other.held_bytes)
        assert self.budget.held_bytes == 0
        self.source.finish()
        for lane in lanes:
            # The stream's own and ours.
            assert self.source.probe.lane_refs(lane) == 2
            self.source.probe.lane_drop(lane)
        _blocks.keep_at_most(64 << 20)
        assert _blocks.held_bytes()[0] == self.used


class Streaming(RuleBasedStateMachine):
    """One stream, a few readers, and everything that may happen to its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(stall_s=0.3, total_s=1.0)
        self.at = self.world.stream()
        self.closed = False

    @initialize(auto=st.booleans(), late=st.booleans())
    def begin(self, auto: bool, late: bool) -> None:
        self.world.source.auto, self.world.stats.late = auto, late

    @rule(page=st.integers(0, SIZE // PAGE), size=st.sampled_from([1, PAGE, PART, 2 * PART + 5]))
    def read(self, page: int, size: int) -> None:
        if self.world.running() < 4:
            offset = page * PAGE
            self.world.start(threading.Thread(target=self.world.read, args=(self.at, offset, size)))

    @rule(first=st.integers(0, 15), count=st.integers(2, 12))
    def read_in_order(self, first: int, count: int) -> None:
        def run() -> None:
            for each in range(count):
                self.world.read(self.at, (2 * first + each) * (PART // 2), PART // 2)

        if self.world.running() < 4:
            self.world.start(threading.Thread(target=run))

    @rule(seed=st.integers(0, 1000))
    def read_at_random(self, seed: int) -> None:
        """As many reads as it takes for the lane to fetch, if requests are answered."""
        if self.world.source.auto:
            drawn = random.Random(seed)
            for _ in range(25):
                self.world.read(self.at, drawn.randrange(SIZE // PAGE) * PAGE, 100)

    @rule(index=st.integers(0, 7), how=st.sampled_from(ANSWERS))
    def answer(self, index: int, how: str) -> None:
        pending = self.world.source.pending()
        if pending:
            pending[index % len(pending)].answer(how)

    @rule(index=st.integers(0, 7), interrupted=st.booleans())
    def disturb(self, index: int, interrupted: bool) -> None:
        """Let headers arrive, or end a request for the caller only."""
        pending = self.world.source.pending()
        if pending and interrupted:
            pending[index % len(pending)].interrupt(Interrupted("the mount is ending"))
        elif pending:
            pending[index % len(pending)].describe()

    @rule()
    def answer_all(self) -> None:
        for get in self.world.source.pending():
            get.answer(RIGHT)

    @rule()
    def settle(self) -> None:
        self.world.source.settle()

    @rule()
    def nap(self) -> None:
        time.sleep(0.004)

    @rule(late=st.booleans())
    def be_late(self, late: bool) -> None:
        self.world.stats.late = late

    @rule(auto=st.booleans())
    def answer_at_once(self, auto: bool) -> None:
        self.world.source.auto = auto

    @rule(full=st.booleans())
    def squeeze(self, full: bool) -> None:
        """Take all memory away, or give it back."""
        other = self.world.other
        other.give(other.held_bytes)
        if full:
            other.take(MEMORY)
        _blocks.keep_at_most(0 if full else 64 << 20)
        _blocks.give_back()

    @rule()
    def rest(self) -> None:
        self.at.rest(1)

    @rule()
    @precondition(lambda self: not self.closed)
    def replace(self) -> None:
        self.world.source.replaced = not self.world.source.replaced

    @rule()
    @precondition(lambda self: not self.closed)
    def close(self) -> None:
        self.closed = True
        self.at.close()

    def teardown(self) -> None:
        self.world.end(self.at)


TestStreaming = pytest.mark.slow(Streaming.TestCase)
TestStreaming.settings = settings(
    max_examples=examples(15), stateful_step_count=25, deadline=None, print_blob=True
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(fixed=0, drawn=1).values(), ids=seeds(fixed=0, drawn=1))
def test_threads(seed: int) -> None:
    """Real threads: readers, answers of every kind, late requests, closed streams, and memory."""
    drawn = random.Random(seed)
    world = World(stall_s=0.2, total_s=1.0)
    stopping = threading.Event()
    streams = [world.stream() for _ in range(3)]
    anywhere = world.stream()
    closed: list[ReadStream] = []

    def readers(number: int) -> None:
        mine = random.Random(seed + number)
        while not stopping.is_set():
            stream = streams[mine.randrange(len(streams))]
            begin = mine.randrange(SIZE)
            for each in range(mine.choice([1, 1, 20])):
                size = mine.choice([100, PAGE, PART // 3, PART])
                world.read(stream, (begin + each * size) % SIZE, size)

    def random_readers(number: int) -> None:
        mine = random.Random(seed + number)
        while not stopping.is_set():
            world.read(anywhere, mine.randrange(SIZE // PAGE) * PAGE, 100)

    def server() -> None:
        mine = random.Random(seed - 1)
        while not stopping.is_set():
            for get in world.source.pending():
                if mine.random() < 0.4:
                    get.describe()
                if mine.random() < 0.3:
                    get.answer(RIGHT if mine.random() < 0.9 else mine.choice(ANSWERS))
            time.sleep(0.0005)

    def settler() -> None:
        while not stopping.is_set():
            world.source.settle()
            time.sleep(0.002)

    for number in range(4):
        world.start(threading.Thread(target=readers, args=(number,)))
        world.start(threading.Thread(target=random_readers, args=(number,)))
    for work in (server, server, settler):
        world.start(threading.Thread(target=work))
    for _ in range(30 * min(TIMES, 10)):
        time.sleep(0.05)
        world.stats.late = drawn.random() < 0.5
        world.source.replaced = drawn.random() < 0.05
        _blocks.keep_at_most(drawn.choice([0, 64 << 20]))
        _blocks.give_back()
        if drawn.random() < 0.3:
            index = drawn.randrange(len(streams))
            closed.append(streams[index])
            streams[index] = world.stream()
            closed[-1].close()
        streams[0].rest(1)
    world.source.replaced = False
    # On a busy machine the reads at random places may not have come so far.
    until_s = time.monotonic() + SAFE_S
    while not world.source.fetches and time.monotonic() < until_s:
        time.sleep(0.01)
    stopping.set()
    world.end(anywhere, *streams, *closed)
    assert world.right > 100
    assert world.source.fetches
