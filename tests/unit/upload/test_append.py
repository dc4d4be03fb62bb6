"""Appends: parts in order, each once, with lost answers and other writers."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mountpoint import errors
from mountpoint.config import MIB, WriteConfig
from mountpoint.metrics.counters import Counters
from mountpoint.s3 import retry
from mountpoint.s3.client import ALWAYS, Condition, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.transfer.memory_budget import Budget
from mountpoint.upload.append import MAX_WAITING, AppendUpload
from mountpoint.upload.uploads import Uploads
from tests.soak import examples
from tests.unit.aws_fakes import isolate
from tests.unit.directory_bucket import connected, directory_bucket, endpoint_of
from tests.unit.fake_client import SAFE_S, FakeClient, Fault, Request
from tests.unit.uploading import CountedSpill
from tests.unit.waiting import until

PART = 5 * MIB
KEY = b"dir/log"
ABSENT = Condition(absent=True)
LOST = Fault(lost=True)


class World:
    """Uploads that append over a fake client, with their shared parts."""

    def __init__(self, client: FakeClient, limit_bytes: int = 16 * PART) -> None:
        client.is_directory = True
        self.client = client
        self.stopping = threading.Event()
        self.counters = Counters()
        self.budget = Budget(limit_bytes)
        self.spill = CountedSpill("/var/tmp")
        self.configure()

    def configure(
        self, *, try_s: float = SAFE_S, total_s: float = SAFE_S, stall_s: float = SAFE_S
    ) -> None:
        """Create the uploads again, with other settings."""
        retry_policy = RetryPolicy(
            try_s=try_s, total_s=total_s, stopping=self.stopping, counters=self.counters
        )
        config = WriteConfig(part_size_bytes=PART, stall_s=stall_s)
        self.uploads = Uploads(self.client, config, self.budget, retry_policy, spill=self.spill)

    def new(self, condition: Condition = ABSENT) -> AppendUpload:
        return self.uploads.appending(KEY, base=None, condition=condition)

    def to(self, base: ObjectInfo) -> AppendUpload:
        return self.uploads.appending(KEY, base=base)

    def kinds(self) -> list[str]:
        """Return the kinds of all requests so far."""
        return [request.kind for request in self.client.requests]

    def check_over(self) -> None:
        """Check that nothing is left: no requests, no memory."""
        self.client.quiet()
        assert self.budget.held_bytes == 0
        assert self.uploads._open == set()
        assert not self.uploads._bytes_by_upload
        until(lambda: self.spill.files == 0)
        assert self.uploads._in_flight_bytes == 0


@pytest.fixture
def world() -> Iterator[World]:
    """A directory bucket without faults."""
    with FakeClient() as client:
        yield World(client)


def data_of(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def append(appending: AppendUpload, data: bytes, step: int = MIB) -> None:
    """Write all bytes, in steps."""
    for start in range(0, len(data), step):
        piece = data[start : start + step]
        assert appending.write(appending.size_bytes, piece) == len(piece)


def content(world: World) -> bytes:
    return world.client.content(KEY)


# --- what works ---


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART + 7])
def test_a_new_file(world: World, size: int) -> None:
    """One PUT that creates the object, and one per further part, in order; nothing else."""
    appending = world.new()
    append(appending, data_of(size), 777_777)
    info = appending.finish()
    assert info == world.client.info(KEY)
    assert content(world) == data_of(size)
    parts = max(-(-size // PART), 1)
    assert world.kinds() == ["put_object"] + ["append_object"] * (parts - 1)
    assert [each.start for each in world.client.requests] == [n * PART for n in range(parts)]
    appending.abort()
    world.check_over()


def test_an_empty_file_is_made_once(world: World) -> None:
    """A new file without bytes is an empty object; finishing again sends nothing."""
    appending = world.new()
    assert appending.finish().size_bytes == 0
    appending.finish()
    append(appending, b"data")
    appending.finish()
    appending.finish()
    assert world.kinds() == ["put_object", "append_object"]
    assert content(world) == b"data"


def test_appending_to_an_existing_file(world: World) -> None:
    """Writes continue at the object's end, in the opened version."""
    base = world.client.put(KEY, b"before ", storage_class="EXPRESS_ONEZONE")
    appending = world.to(base)
    assert appending.size_bytes == 7
    assert appending.finish() == base
    assert world.kinds() == []
    assert appending.write(7, b"after") == 5
    info = appending.finish()
    assert content(world) == b"before after"
    assert (info.size_bytes, info.etag) == (12, world.client.info(KEY).etag)
    assert info.storage_class == "EXPRESS_ONEZONE"
    (request,) = world.client.requests
    assert (request.start, request.condition) == (7, Condition(etag=base.etag))


def test_replacing_one_version(world: World) -> None:
    """The first part replaces the object, if it is still the opened version."""
    base = world.client.put(KEY, data_of(100))
    appending = world.new(Condition(etag=base.etag))
    append(appending, b"new")
    appending.finish()
    assert content(world) == b"new"
    late = world.new(Condition(etag=base.etag))
    append(late, b"later")
    with pytest.raises(errors.PreconditionFailed) as caught:
        late.finish()
    assert not isinstance(caught.value, errors.AlreadyExists)
    assert content(world) == b"new"


@given(
    steps=st.lists(st.one_of(st.just(-1), st.integers(1, 2 * PART)), min_size=1, max_size=8),
    faults=st.lists(st.sampled_from(["", "lost", "refused", "throttled"]), max_size=12),
)
@settings(max_examples=examples(20), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sequence(steps: list[int], faults: list[str]) -> None:
    """Any writes, finishes (-1) and lost answers: after each finish all bytes exist, once."""
    kinds = {
        "lost": LOST,
        "refused": Fault(error=errors.TransportFault("refused")),
        "throttled": Fault(error=errors.Throttled("slow down")),
    }
    left = list(faults)

    def script(request: Request) -> Fault | None:
        return kinds.get(left.pop(0)) if left else None

    with FakeClient() as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "FIRST_PAUSE_S", 0.001)
        world = World(client)
        client.script = script
        base = client.put(KEY, b"base") if len(steps) % 2 else None
        expected = b"base" if base else b""
        appending = world.to(base) if base else world.new()
        for step in [*steps, -1]:
            if step > 0:
                data = data_of(step)
                appending.write(len(expected), data)
                expected += data
            else:
                info = appending.finish()
                assert client.content(KEY) == expected
                assert (info.size_bytes, info.etag) == (len(expected), client.info(KEY).etag)
        appending.abort()
        world.check_over()


def test_parts_go_out_while_it_is_written(world: World) -> None:
    """A complete part is sent immediately; one is in flight, and few wait."""
    blocked = threading.Event()

    def script(_: Request) -> Fault | None:
        blocked.wait(SAFE_S)
        return None

    world.client.script = script
    appending = world.new()
    room = (MAX_WAITING + 2) * PART  # one in flight, those that wait, and the one being gathered
    append(appending, data_of(room))
    assert world.kinds() == ["put_object"]
    with ThreadPoolExecutor(1) as pool:
        further = pool.submit(appending.write, room, b"x")
        time.sleep(0.05)
        assert not further.done()
        assert world.client.under_way() == 1
        blocked.set()
        assert further.result(SAFE_S) == 1
    assert appending.finish().size_bytes == room + 1
    assert content(world) == data_of(room) + b"x"
    appending.abort()
    world.check_over()


@pytest.mark.slow
def test_memory(world: World) -> None:
    """Many writers keep to the budget, and to the limit of bytes in flight."""
    world.budget = Budget(8 * PART)
    world.configure()
    max_held = max_in_flight = 0

    def script(_: Request) -> Fault | None:
        nonlocal max_held, max_in_flight
        max_held = max(max_held, world.budget.held_bytes)
        max_in_flight = max(max_in_flight, world.uploads._in_flight_bytes)
        return Fault(delay_s=0.002)

    world.client.script = script
    keys = [b"%d" % number for number in range(6)]
    writers = [world.uploads.appending(key, base=None, condition=ABSENT) for key in keys]
    for _ in range(11):
        for writer in writers:
            append(writer, data_of(MIB))
    for writer in writers:
        writer.finish()
        writer.abort()
    assert max_held <= 8 * PART
    assert PART < max_in_flight <= 2 * PART
    for key in keys:
        assert world.client.content(key) == data_of(MIB) * 11
    world.check_over()


# --- order ---


def test_only_the_next_offset(world: World) -> None:
    """Any other write is refused, and the written bytes stay."""
    appending = world.new()
    append(appending, b"data")
    for offset in (0, 3, 5):
        with pytest.raises(errors.NotSequential):
            appending.write(offset, b"x")
    append(appending, b" more")
    appending.finish()
    assert content(world) == b"data more"


@pytest.mark.slow
def test_writers_at_the_same_time(world: World) -> None:
    """Of two writes at one offset one is refused; a finish in between does no harm."""
    appending = world.new()
    done = []

    def write(letter: bytes) -> None:
        while appending.size_bytes < 40 * MIB:
            with suppress(errors.NotSequential):
                done.append(appending.write(appending.size_bytes, letter * MIB))

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(write, b"a"), pool.submit(write, b"b")]
        for _ in range(5):
            pool.submit(appending.finish).result(SAFE_S)
        for future in futures:
            future.result(SAFE_S)
    info = appending.finish()
    data = content(world)
    assert info.size_bytes == len(data) == sum(done)
    pieces = [data[start : start + MIB] for start in range(0, len(data), MIB)]
    assert all(len(set(piece)) == 1 for piece in pieces)


# --- faults ---


@pytest.mark.parametrize("total_s", [SAFE_S, 0.0])
@pytest.mark.parametrize("new", [True, False])
def test_a_lost_answer(world: World, new: bool, total_s: float) -> None:
    """HEAD finds a part whose answer was lost, and it is not sent twice."""
    world.configure(total_s=total_s)
    appending = world.new() if new else world.to(world.client.put(KEY, b""))
    world.client.inject("put_object" if new else "append_object", LOST)
    append(appending, b"data")
    info = appending.finish()
    assert info.etag == world.client.info(KEY).etag
    append(appending, b" more")
    appending.finish()
    assert content(world) == b"data more"
    assert world.client.count("head") == 1


@pytest.mark.parametrize("new", [True, False])
def test_a_part_that_did_not_arrive(world: World, new: bool) -> None:
    """When tries run out and HEAD shows that the part has not arrived, its error is raised."""
    world.configure(total_s=0.0)
    appending = world.new() if new else world.to(world.client.put(KEY, b"before"))
    kind = "put_object" if new else "append_object"
    world.client.inject(kind, Fault(error=errors.ServerFault("a fault")))
    append(appending, b"data")
    with pytest.raises(errors.ServerFault):
        appending.finish()
    with pytest.raises(errors.ServerFault):
        appending.write(appending.size_bytes, b"x")
    appending.abort()
    assert world.client.keys() == ([] if new else [KEY])
    world.check_over()


def test_silence(world: World) -> None:
    """A part that is silent for too long is sent again."""
    world.configure(stall_s=0.05)
    world.client.inject("append_object", Fault(silent=True))
    appending = world.to(world.client.put(KEY, b""))
    append(appending, b"data")
    appending.finish()
    assert content(world) == b"data"
    assert world.client.count("append_object") == 2


@pytest.mark.parametrize("what", ["replaced", "appended", "deleted"])
@pytest.mark.parametrize("lost", [False, True])
def test_somebody_else(world: World, what: str, lost: bool) -> None:
    """Another client's writes are noticed, and not overwritten."""
    appending = world.to(world.client.put(KEY, b"before"))
    append(appending, b"ours")
    if lost:
        world.client.inject("append_object", Fault(error=errors.TransportFault("gone")))
    if what == "deleted":
        world.client.delete(KEY)
    else:
        world.client.put(KEY, b"before" if what == "replaced" else b"before, by others")
        if what == "replaced":
            world.client.put(KEY, b"BEFORE")
    with pytest.raises(errors.PreconditionFailed) as caught:
        appending.finish()
    assert errors.outcome(caught.value) == errors.OUTCOMES[errors.PreconditionFailed]
    left = {"deleted": [], "replaced": [b"BEFORE"], "appended": [b"before, by others"]}
    keys = world.client.keys()
    assert [world.client.content(key) for key in keys] == left[what]
    appending.abort()
    world.check_over()


def test_somebody_else_was_first(world: World) -> None:
    """A new file that exists by now is not appended to, even after our own failed try."""
    appending = world.new()
    append(appending, b"data")
    world.client.put(KEY, b"DATA")
    world.client.inject("put_object", Fault(error=errors.ServerFault("a fault")))
    with pytest.raises(errors.AlreadyExists):
        appending.finish()
    assert content(world) == b"DATA"


def test_a_refusal_comes_with_the_next_call(world: World) -> None:
    """The error of a part in flight is raised by write, check and finish."""
    world.client.inject("append_object", Fault(error=errors.AccessDenied("no")))
    appending = world.new()
    append(appending, data_of(2 * PART + 1))
    world.client.quiet()
    for call in (appending.check, appending.finish, lambda: appending.write(0, b"")):
        with pytest.raises(errors.AccessDenied):
            call()
    assert content(world) == data_of(PART)


def test_too_many_parts(world: World) -> None:
    """After 10,000 parts S3 accepts no more: the file is too large."""
    world.client.max_parts = 3
    appending = world.new()
    for number in range(3):
        append(appending, b"x")
        assert appending.finish().size_bytes == number + 1
    append(appending, b"x")
    with pytest.raises(errors.TooLarge):
        appending.finish()
    assert content(world) == b"xxx"


# --- the end ---


def test_giving_up(world: World) -> None:
    """Sent bytes stay; unsent ones are dropped with their memory."""
    appending = world.new()
    append(appending, b"sent")
    appending.finish()
    append(appending, data_of(100))
    appending.abort()
    appending.abort()
    assert content(world) == b"sent"
    for call in (appending.finish, lambda: appending.write(104, b"x")):
        with pytest.raises(errors.Interrupted):
            call()
    world.check_over()


def test_the_mount_goes_away(world: World) -> None:
    """A waiting thread is woken immediately."""
    world.client.script = lambda _: Fault(silent=True)
    appending = world.new()
    append(appending, data_of(PART + 1))
    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(appending.finish)
        world.uploads.interrupt()
        assert isinstance(finishing.exception(SAFE_S), errors.Interrupted)
    with pytest.raises(errors.Interrupted):
        world.new()
    world.check_over()


def test_only_in_directory_buckets(world: World) -> None:
    """On other buckets appends are refused before anything is written."""
    world.client.is_directory = False
    with pytest.raises(errors.NotOffered):
        world.new()
    assert world.uploads._open == set()


def test_a_new_file_has_a_condition(world: World) -> None:
    """A first part that arrives late must not replace later bytes."""
    with pytest.raises(ValueError, match="condition"):
        world.new(ALWAYS)


# --- over the CRT ---


def test_on_the_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write, finish, write again, and continue an existing object."""
    isolate(tmp_path, monkeypatch)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    retry_policy = RetryPolicy(
        try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event(), counters=Counters()
    )
    config = WriteConfig(part_size_bytes=PART)
    data = data_of(12 * MIB)
    with directory_bucket() as bucket, connected(endpoint_of(bucket)) as client:
        uploads = Uploads(client, config, Budget(16 * PART), retry_policy)
        first = uploads.appending(KEY, base=None, condition=ABSENT)
        append(first, data)
        assert first.finish().size_bytes == len(data)
        append(first, b"more")
        info = first.finish()
        first.abort()
        offsets = [each.headers.get("x-amz-write-offset-bytes") for each in bucket.writes()]
        assert offsets == [None, str(PART), str(2 * PART), str(len(data))]
        base = client.head(KEY).result(SAFE_S)
        assert (base.etag, base.size_bytes) == (info.etag, info.size_bytes)
        second = uploads.appending(KEY, base=base)
        append(second, b"and more")
        second.finish()
        second.abort()
        assert bucket.objects[KEY][0] == data + b"moreand more"
