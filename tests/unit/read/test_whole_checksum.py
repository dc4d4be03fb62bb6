"""Files that are read completely are compared with the whole object's checksum."""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.patterns import Piece, in_turn, pieces
from mountpoint._fastpath import Part
from mountpoint.errors import FileDamaged, ServerFault
from mountpoint.fs.handles import HandleNumber
from mountpoint.read import whole_checksum
from mountpoint.read.history import LAST_FILES
from mountpoint.read.whole_checksum import MAX_RANGES, WholeChecksum
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.wire.checksum import ALGORITHMS, CRCS, Expected, crc_matches
from mountpoint.transfer import hedging
from tests.soak import examples
from tests.unit.fake_client import SAFE_S, FakeClient, Fault, etag_of
from tests.unit.mounted import Mounted, mounted

KIB, MIB = 1 << 10, 1 << 20
SMALL = random.Random(1).randbytes(600 * KIB)
LARGE = random.Random(2).randbytes(9 * MIB + 777)
NAMES = list(CRCS)


@pytest.fixture(autouse=True)
def _same_for_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send no hedged requests."""
    monkeypatch.setattr(hedging, "MIN_LATE_S", SAFE_S)


def flipped(data: bytes, position: int) -> bytes:
    """Return the bytes with one bit changed."""
    return data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :]


class Reader:
    """A mount of one object, and a program that reads it."""

    def __init__(self, world: Mounted) -> None:
        self.world = world
        self.client = world.client

    def open(self) -> HandleNumber:
        """Open the file."""
        return self.world.fs.open(self.world.look(b"k").inode, os.O_RDONLY)

    def read(self, step: int = 128 * KIB) -> bytes:
        """Read the file from start to end."""
        return self.world.read_file(self.world.look(b"k").inode, step)

    def run(self, handle: HandleNumber, reads: Iterable[Piece]) -> int:
        """Read in pieces, and return their number."""
        return sum(len(self.world.fs.read(handle, *read)) > 0 for read in reads)

    def heads(self) -> int:
        """The number of HEADs."""
        return self.client.count("head")


@contextmanager
def reader(data: bytes, name: str = "crc64nvme", **checksum: Any) -> Iterator[Reader]:
    """Mount an object with a checksum of its own bytes, or of `of`."""
    with mounted({b"k": data}) as world:
        world.client.keep_checksum(b"k", name, **checksum)
        yield Reader(world)


@pytest.mark.parametrize("step", [64 * KIB, MIB])
@pytest.mark.parametrize("name", NAMES)
def test_right(name: str, step: int) -> None:
    """A matching file costs one additional request."""
    with reader(LARGE, name) as it:
        assert it.read(step) == LARGE
        assert it.heads() == 1


@pytest.mark.parametrize("position", [0, 5 * MIB, len(LARGE) - 1])
@pytest.mark.parametrize("name", NAMES)
def test_wrong(name: str, position: int) -> None:
    """With one wrong bit anywhere, the end of the file cannot be read, now or later."""
    with reader(LARGE, name, of=flipped(LARGE, position)) as it:
        handle = it.open()
        with pytest.raises(FileDamaged, match=f"does not match its {name} checksum"):
            it.run(handle, pieces(0, len(LARGE), 128 * KIB))
        for again in (0, len(LARGE) - 4 * KIB):
            with pytest.raises(FileDamaged):
                it.world.fs.read(handle, again, 128 * KIB)
        it.world.fs.release(handle)
        assert it.world.budget.held_bytes == 0


def test_the_next_open_has_nothing_of_a_damaged_file() -> None:
    """The inode of a damaged file is replaced, and the kernel must forget its pages."""
    with reader(LARGE, of=flipped(LARGE, 7)) as it:
        before = it.world.look(b"k").inode
        handle = it.open()
        for _ in range(3):
            with pytest.raises(FileDamaged):
                it.run(handle, pieces(0, len(LARGE), MIB))
        assert it.world.damaged == [before]
        assert it.world.fs.getattr(before).size_bytes == len(LARGE)
        it.client.keep_checksum(b"k", "crc64nvme")
        assert it.world.look(b"k").inode != before
        assert it.read() == LARGE
        it.world.fs.release(handle)
        assert it.world.damaged == [before]


@pytest.mark.parametrize("name", NAMES)
def test_small_files_of_which_little_was_fetched(name: str) -> None:
    """A small file that is fetched in pieces is compared like a large one."""
    names = [b"l%d" % index for index in range(LAST_FILES)]
    for of, right in ((SMALL, True), (flipped(SMALL, 300 * KIB), False)):
        with mounted(dict.fromkeys([b"k", *names], SMALL)) as world:
            for other in names:
                handle = world.fs.open(world.look(other).inode, os.O_RDONLY)
                world.fs.read(handle, 0, 4 * KIB)
                world.fs.release(handle)
            world.client.keep_checksum(b"k", name, of=of)
            gets = world.client.count("get")
            if right:
                assert Reader(world).read() == SMALL
            else:
                with pytest.raises(FileDamaged):
                    Reader(world).read()
            assert world.client.count("get") - gets > 1


def test_a_file_that_is_fetched_whole() -> None:
    """A file in one piece comes with its checksum, without a HEAD."""
    with reader(SMALL, of=b"another") as it:
        assert it.read() == SMALL
        assert it.heads() == 0


def test_medium_files_fetched_with_open() -> None:
    """If open fetches several parts, it also requests the checksum."""
    data = LARGE[: 5 * MIB]
    with mounted({b"a": data, b"k": data}) as world:
        world.client.keep_checksum(b"k", "crc32c", of=flipped(data, 4 * MIB))
        assert world.read_file(world.look(b"a").inode) == data
        heads = world.client.count("head")
        handle = world.fs.open(world.look(b"k").inode, os.O_RDONLY)
        assert world.client.count("head") == heads + 1
        with pytest.raises(FileDamaged):
            Reader(world).run(handle, pieces(0, len(data), MIB))
        world.fs.release(handle)
        assert world.client.count("head") == heads + 1


def test_files_fetched_ahead_of_their_opens() -> None:
    """Prefetched files are compared as well, with one HEAD."""
    data = LARGE[: 2 * MIB]
    names = [b"f%02d" % index for index in range(12)]
    with mounted(dict.fromkeys(names, data), ttl_s=1000.0, asks_on_open=False) as world:
        for name in names:
            world.client.keep_checksum(name, "crc64nvme")
        world.client.keep_checksum(names[-1], "crc64nvme", of=flipped(data, MIB))
        world.names()
        for name in names[:-1]:
            assert world.read_file(world.look(name).inode) == data
        with pytest.raises(FileDamaged):
            world.read_file(world.look(names[-1]).inode)
        asked = [each.key for each in world.client.requests if each.kind == "head"]
        assert sorted(asked) == names
        assert world.counters.snapshot()["bytes_prefetched"] > 0


@pytest.mark.parametrize("kind", ["COMPOSITE", "another"])
def test_checksums_of_parts_only(kind: str) -> None:
    """A checksum of parts only does not cover the bytes."""
    with reader(LARGE, of=b"", kind=kind) as it:
        assert it.read() == LARGE


def test_an_upload_in_one_part() -> None:
    """The checksum of a single part's checksum covers all bytes."""
    for data, right in ((LARGE, True), (flipped(LARGE, 9), False)):
        value = CRCS["crc32"].of(data, 0)
        outer = ALGORITHMS["crc32"].new()
        outer.update(value.to_bytes(4, "big"))
        expected = Expected("crc32", outer.digest(), of_part=True)
        assert crc_matches(expected, CRCS["crc32"].of(LARGE, 0)) == right


@pytest.mark.parametrize(
    "fault",
    [Fault(error=ServerFault("no")), Fault(silent=True), Fault(lost=True)],
    ids=["refused", "silent", "lost"],
)
def test_no_answer(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer about the checksum the file can still be read."""
    with reader(LARGE, of=b"another") as it:
        monkeypatch.setattr(it.world.streams._retry_policy, "once_s", 0.01)
        it.client.inject("head", fault)
        assert it.read() == LARGE
        assert it.heads() == 1


def test_another_version() -> None:
    """The checksum of another version does not count."""
    with FakeClient({b"k": LARGE}) as client:
        it = Parts(SMALL, client, known=False)
        client.keep_checksum(b"k", "crc64nvme")
        it.whole.ask()
        it.add(0, MIB // 2)
        it.add(MIB // 2, len(SMALL))
        assert it.whole.check() is None


@pytest.mark.parametrize(
    "reads",
    [
        lambda: [(offset, 4 * KIB) for offset in range(0, len(LARGE) - MIB, MIB)],
        lambda: [(offset, 128 * KIB) for offset in range(len(LARGE) - MIB, 0, -128 * KIB)],
        lambda: [(0, 128 * KIB), (5 * MIB, MIB)],
    ],
    ids=["here and there", "backwards", "two ranges"],
)
def test_readers_elsewhere_send_no_head(reads: Callable[[], list[Piece]]) -> None:
    """A reader that does not start at the beginning costs no HEAD."""
    with reader(LARGE, of=b"another") as it:
        handle = it.open()
        it.run(handle, reads())
        it.world.fs.release(handle)
        assert it.heads() == 0


def test_files_with_unread_parts_are_not_compared() -> None:
    """A file with an unread part is not compared."""
    with reader(LARGE, of=b"another") as it:
        handle = it.open()
        it.run(handle, [*pieces(0, 4 * MIB, MIB), *pieces(6 * MIB, len(LARGE), MIB)])
        it.world.fs.release(handle)
        assert it.heads() == 1


def test_the_end_first() -> None:
    """Programs look at the end first: a file that is then read completely is compared."""
    with reader(LARGE, of=flipped(LARGE, MIB)) as it:
        handle = it.open()
        it.world.fs.read(handle, len(LARGE) - 4 * KIB, 4 * KIB)
        with pytest.raises(FileDamaged):
            it.run(handle, pieces(0, len(LARGE), MIB))
        it.world.fs.release(handle)


def test_turned_off() -> None:
    """Without checksums, by option or by the store's refusal, no HEAD is sent."""
    with reader(LARGE, of=b"another") as it:
        it.client.verifies = False
        assert it.read() == LARGE
        assert it.heads() == 0


def test_failures_on_the_way() -> None:
    """Parts that failed and were fetched again in other pieces are compared like others."""
    for of, right in ((LARGE, True), (flipped(LARGE, 3 * MIB), False)):
        with reader(LARGE, of=of) as it:
            faults = [Fault(cut=10), Fault(), Fault(error=ServerFault("no")), Fault(), Fault(cut=9)]
            it.client.inject("get", *faults)
            if right:
                assert it.read() == LARGE
            else:
                with pytest.raises(FileDamaged):
                    it.read()


class Parts:
    """A `WholeChecksum`, and ready parts of its object."""

    def __init__(self, data: bytes, client: FakeClient, *, known: bool) -> None:
        self.data = data
        self.info = ObjectInfo(b"k", len(data), 0, etag_of(data))
        self.whole = WholeChecksum(client, self.info, SAFE_S)
        self.known = known

    def add(self, start: int, stop: int) -> None:
        """Let a reader reach a part."""
        summing = self.whole.sums if self.known else None
        part = Part(start, stop, self.info.etag, summing=summing)
        part.on_headers(self.info)
        part.on_body(self.data[start:stop], start)
        part.finish(None)
        self.whole.add(part)


@settings(max_examples=examples(40), deadline=None)
@given(
    cuts=st.sets(st.integers(1, 9999), min_size=1, max_size=MAX_RANGES),
    order=st.randoms(use_true_random=False),
    name=st.sampled_from(NAMES),
    asked_after=st.integers(0, MAX_RANGES),
    known=st.booleans(),
    wrong=st.booleans(),
)
def test_any_parts_in_any_order(
    cuts: set[int],
    order: random.Random,
    name: str,
    asked_after: int,
    known: bool,
    wrong: bool,
) -> None:
    """With any parts in any order, the checksum is that of the whole object."""
    data = LARGE[:10_000]
    with FakeClient({b"k": data}) as client:
        client.keep_checksum(b"k", name, of=flipped(data, 5000) if wrong else None)
        it = Parts(data, client, known=known)
        it.add(len(data) - 1, len(data))
        ranges = list(zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True))
        order.shuffle(ranges)
        found = []
        for index, range_ in enumerate(ranges):
            if index == min(asked_after, len(ranges) - 1):
                it.whole.ask()
                it.whole.ask()
            it.add(*range_)
            start, stop = ranges[order.randrange(index + 1)]
            it.add(start, stop)  # a second time
            it.add(start, (start + stop + 1) // 2)
            found.append(it.whole.check())
        assert [each for each in found if each] == ([name] if wrong else [])
        assert client.count() == 1


def test_too_many_ranges() -> None:
    """A file read in many ranges is given up: no computation, no HEAD."""
    with FakeClient({b"k": LARGE}) as client:
        it = Parts(LARGE, client, known=False)
        for number in range(MAX_RANGES + 1):
            assert not it.whole.asked
            it.add(2 * number * KIB, (2 * number + 1) * KIB)
        assert it.whole.asked
        assert it.whole.front == 0
        it.whole.ask()
        assert client.count() == 0


@pytest.mark.parametrize("asked", [False, True])
def test_bytes_before_the_answer(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the algorithm is unknown, only a limited number of bytes is summed."""
    monkeypatch.setattr(whole_checksum, "MAX_UNASKED_BYTES", 10 * KIB)
    monkeypatch.setattr(whole_checksum, "MAX_UNANSWERED_BYTES", 20 * KIB)
    with FakeClient({b"k": LARGE}) as client:
        client.inject("head", Fault(silent=True))
        it = Parts(LARGE, client, known=False)
        if asked:
            it.whole.ask()
        most = 20 if asked else 10
        for number in range(most):
            it.add(number * KIB, (number + 1) * KIB)
        assert it.whole.front == most * KIB
        it.add(most * KIB, (most + 1) * KIB)
        assert it.whole.front == 0
        it.whole.give_up()


def test_readers_in_turn() -> None:
    """Readers that share a descriptor, each with a piece of the file, have it compared."""
    with reader(LARGE, of=flipped(LARGE, 7 * MIB)) as it:
        handle = it.open()
        ends = (0, 4 * MIB, len(LARGE))
        reads = in_turn([pieces(start, stop, 64 * KIB) for start, stop in pairwise(ends)])
        with pytest.raises(FileDamaged):
            it.run(handle, reads)
        it.world.fs.release(handle)
