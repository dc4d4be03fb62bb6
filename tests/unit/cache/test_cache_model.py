"""Two caches on one directory, whose objects change, whose blocks are damaged, and which are full.

Each is what a mount has. Whatever happens, a stream reads the bytes of the version that it was
opened with, or fails because that version is gone.
"""

import contextlib
import os
import random
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from mountpoint.cache.block_cache import BlockCache
from mountpoint.cache.directory import CacheDirectory
from mountpoint.config import ReadConfig
from mountpoint.errors import NotFound, PreconditionFailed
from mountpoint.metrics.counters import Counters
from mountpoint.read.stream import ReadStream
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.transfer import hedging
from mountpoint.transfer.memory_budget import Budget
from mountpoint.transfer.stats import TransferStats
from tests.soak import examples
from tests.unit.cache.objects import BUCKET, ENDPOINT, SAFE_S, content, files_of, sum_of
from tests.unit.fake_client import FakeClient, Fault

KIB = 1024
MIB = 1 << 20
PART = 512 * KIB
SIZES = [1, 70 * KIB, MIB, 2 * MIB + 5000]
LIMIT = 4 * MIB
KEYS = (b"one", b"two")


@pytest.fixture(autouse=True, scope="module")
def _never_late(short_pauses: pytest.MonkeyPatch) -> None:
    short_pauses.setattr(hedging, "MIN_LATE_S", SAFE_S)


class Mount:
    """What one mount has: a cache, a budget, and open streams with the bytes of their versions."""

    def __init__(self, path: str, client: FakeClient) -> None:
        self.client = client
        self.counters = Counters()
        self.cache = BlockCache(
            CacheDirectory.open(path),
            ENDPOINT,
            BUCKET,
            self.counters,
            max_bytes=LIMIT,
            queue_bytes=8 * MIB,
        )
        self.budget = Budget(64 * MIB)
        self.stats = TransferStats(self.budget, self.counters, part_bytes=PART, max_bytes=8 * PART)
        self.config = ReadConfig(PART, 64 * MIB, SAFE_S, SAFE_S)
        self.streams: list[tuple[ReadStream, bytes]] = []

    def open(self, info: ObjectInfo, data: bytes, *, initial: int, asks: bool) -> None:
        stream = ReadStream(
            self.client,
            info,
            initial_bytes=min(initial, info.size_bytes),
            cached=self.cache.object(info),
            config=self.config,
            budget=self.budget,
            stats=self.stats,
            retry_policy=RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event()),
            on_begin=lambda _: None,
            on_close=lambda _: None,
        )
        try:
            if asks:
                stream.open()
            else:
                stream.open_unasked()
        except (PreconditionFailed, NotFound):
            stream.close()
            return
        self.streams.append((stream, data))

    def end(self) -> None:
        for stream, _ in self.streams:
            stream.close()
        self.streams.clear()
        assert self.budget.held_bytes == 0
        self.cache.close()


class Caching(RuleBasedStateMachine):
    """Two mounts of one bucket."""

    def __init__(self) -> None:
        super().__init__()
        self.path = tempfile.mkdtemp(prefix="cache-model-")
        self.client = FakeClient()
        self.client.verifies = False
        self.versions = 0
        self.mounts: list[Mount] = []
        self.threads: list[threading.Thread] = []
        self.wrong: list[str] = []

    @initialize(sizes=st.tuples(*[st.sampled_from(SIZES)] * len(KEYS)))
    def begin(self, sizes: tuple[int, ...]) -> None:
        for key, size in zip(KEYS, sizes, strict=True):
            self._put(key, size)
        self.mounts = [Mount(self.path, self.client) for _ in range(2)]

    def _put(self, key: bytes, size: int) -> None:
        self.versions += 1
        self.client.put(key, content(size, self.versions % 5))

    @rule(key=st.sampled_from(KEYS), size=st.sampled_from(SIZES))
    def replace(self, key: bytes, size: int) -> None:
        self._put(key, size)

    @rule(
        which=st.integers(0, 1),
        key=st.sampled_from(KEYS),
        initial=st.sampled_from([4 * KIB, PART, 3 * MIB]),
        asks=st.booleans(),
    )
    def open(self, which: int, key: bytes, initial: int, asks: bool) -> None:
        if len(self.mounts[which].streams) < 4:
            info, data = self.client.info(key), self.client.content(key)
            self.mounts[which].open(info, data, initial=initial, asks=asks)

    @rule(which=st.integers(0, 1), index=st.integers(0, 3), seed=st.integers(0, 1000))
    def read(self, which: int, index: int, seed: int) -> None:
        """Read all in order, or some places, in this thread."""
        self._read(which, index, seed)

    @rule(which=st.integers(0, 1), index=st.integers(0, 3), seed=st.integers(0, 1000))
    def read_meanwhile(self, which: int, index: int, seed: int) -> None:
        """Do the same in a thread, while other things happen."""
        thread = threading.Thread(target=self._read, args=(which, index, seed))
        self.threads.append(thread)
        thread.start()

    def _read(self, which: int, index: int, seed: int) -> None:
        streams = self.mounts[which].streams
        if not streams:
            return
        stream, data = streams[index % len(streams)]
        drawn = random.Random(seed)
        places = range(0, len(data), 128 * KIB)
        if drawn.random() < 0.5:
            places = range(drawn.randrange(len(data)), len(data), len(data) // 5 + 1)
        for offset in places:
            size = drawn.choice([1, 4 * KIB, 128 * KIB])
            try:
                found = bytes(memoryview(stream.read(offset, size)))
            except (PreconditionFailed, NotFound):
                newest = self.client.info(stream.key)
                if newest.etag == stream._info.etag and not self.threads:
                    self.wrong.append(f"the version is there: {stream.key!r}")
                return
            except BaseException as error:
                if not stream._closed:
                    self.wrong.append(repr(error))
                return
            if found != data[offset : offset + size]:
                self.wrong.append(f"{stream.key!r} [{offset}, {offset + size}): other bytes")

    @rule(which=st.integers(0, 1), index=st.integers(0, 3))
    def close(self, which: int, index: int) -> None:
        """Close a stream, maybe while it is read."""
        streams = self.mounts[which].streams
        if streams:
            streams.pop(index % len(streams))[0].close()

    @rule(which=st.integers(0, 1), seed=st.integers(0, 1 << 20), how=st.integers(0, 4))
    def damage(self, which: int, seed: int, how: int) -> None:
        """Damage, exchange or remove the file of a block."""
        directory = self.mounts[which].cache.directory
        files, drawn = files_of(directory), random.Random(seed)
        if not files:
            return
        root = Path(self.path, "mount-s3-cache/v1")
        file, other = root / drawn.choice(files).path, root / drawn.choice(files).path
        with contextlib.suppress(FileNotFoundError):  # another thread evicts
            right = file.read_bytes()
            place = drawn.randrange(len(right))
            if how == 0:
                file.unlink()
            elif how == 1 and file != other:
                os.replace(other, file)
            elif how == 2:
                os.truncate(file, place)
            else:
                changed = bytearray(right)
                changed[place] ^= 1 << drawn.randrange(8)
                if how == 3:
                    changed[place:] = bytes(len(right) - place)
                # Another file, as no program changes a block in place.
                (root / "tmp/damaged").write_bytes(changed)
                os.replace(root / "tmp/damaged", file)

    @rule()
    def settle(self) -> None:
        for mount in self.mounts:
            assert mount.cache.wait(SAFE_S)

    @rule(faulty=st.booleans())
    def disturb(self, faulty: bool) -> None:
        """The next request is answered late, or is cut."""
        self.client.inject("get", Fault(cut=1000) if faulty else Fault(delay_s=0.01))

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        """End a mount after the reads in progress, and start another."""
        self.await_reads()
        self.mounts[which].end()
        self.mounts[which] = Mount(self.path, self.client)

    @rule(which=st.integers(0, 1))
    def clear(self, which: int) -> None:
        self.mounts[which].cache.directory.clear()

    def await_reads(self) -> None:
        for thread in self.threads:
            thread.join(SAFE_S)
            assert not thread.is_alive(), "a read hangs"

    def teardown(self) -> None:
        self.await_reads()
        assert not self.wrong, self.wrong
        for mount in self.mounts:
            assert mount.cache.wait(SAFE_S)
            mount.end()
        if self.mounts:
            directory = self.mounts[0].cache.directory
            # Each mount has its two threads, which write a block and its trailer.
            assert sum_of(directory) <= LIMIT + 4 * (MIB + 8 * KIB)
            assert not directory.is_counted or directory.used_bytes >= sum_of(directory) - MIB
        self.client.close()
        shutil.rmtree(self.path)


TestCaching = pytest.mark.slow(Caching.TestCase)
TestCaching.settings = settings(
    max_examples=examples(25), stateful_step_count=30, deadline=None, print_blob=True
)


def test_ranges_that_meet_in_a_small_block(tmp_path: Path) -> None:
    """Two readers' ranges, widened to small blocks, have some in common, which is fetched once."""
    with FakeClient() as client:
        client.verifies = False
        info = client.put(b"one", content(MIB))
        mount = Mount(str(tmp_path), client)
        mount.open(info, content(MIB), initial=4 * KIB, asks=False)
        ((stream, data),) = mount.streams
        stream.read(0, 1)
        client.requests.clear()
        with stream._lock:
            stream._issue_gaps([(512 * KIB, 600 * KIB), (600 * KIB, 700 * KIB)], 0, 1)
        assert sorted(client.ranges()) == [(512 * KIB, 640 * KIB), (640 * KIB, 704 * KIB)]
        assert (
            bytes(memoryview(stream.read(520 * KIB, 100 * KIB))) == data[520 * KIB :][: 100 * KIB]
        )
        mount.end()
