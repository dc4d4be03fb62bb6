"""Uploads: their requests, their faults, and no lost bytes or leaks."""

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mountpoint import errors
from mountpoint.s3.client import Condition, ObjectInfo
from mountpoint.upload.upload import Upload
from tests.soak import examples
from tests.unit.fake_client import MTIME_NS, SAFE_S, FakeClient, Fault, Request
from tests.unit.uploading import ABSENT, KEY, MIB, PART, CountedSpill, World, data_of
from tests.unit.waiting import until


@pytest.fixture
def world() -> Iterator[World]:
    """A world whose S3 has no faults."""
    with FakeClient() as client:
        yield World(client)


# --- what works ---


@pytest.mark.parametrize("size", [0, 1, 100_000, PART])
def test_up_to_a_part_is_one_put(world: World, size: int) -> None:
    """A file of up to one part is one request, at its end."""
    data = data_of(size)
    upload = world.upload()
    world.write(upload, data)
    assert world.kinds() == []
    info = upload.finish()
    assert world.kinds() == ["put_object"]
    assert world.client.content(KEY) == data
    assert info == world.client.info(KEY)
    world.check_over()


@pytest.mark.parametrize("fault", [None, Fault(error=errors.AccessDenied("no right"))])
def test_bodies_of_new_objects(world: World, fault: Fault | None) -> None:
    """A body that has become an object is reported once; no others are."""
    found: list[tuple[ObjectInfo, bytes]] = []
    world.configure(on_written=lambda info, body: found.append((info, b"".join(body.pieces))))  # type: ignore[arg-type]
    if fault is not None:
        world.client.inject("put_object", fault)
    upload = world.upload()
    world.write(upload, b"12345")
    for _ in range(2):
        with suppress(errors.AccessDenied):
            upload.finish()
    assert found == ([] if fault else [(world.client.info(KEY), b"12345")])
    large = world.uploads.upload(b"large")
    world.write(large, data_of(PART + 1))
    large.finish()
    assert len(found) == (0 if fault else 1)
    world.check_over()


@pytest.mark.parametrize("size", [0, PART, PART + 1])
def test_described(world: World, size: int) -> None:
    """The options of an upload can change until a request has sent them."""
    upload = world.uploads.upload(KEY, metadata={"a": "1", "b": "1"})
    assert upload.add_metadata({"a": "2"})
    world.write(upload, data_of(size))
    assert upload.add_metadata({"c": "3"}) == (size <= PART)
    upload.finish()
    assert not upload.add_metadata({"a": "4"})
    expected = {"a": "2", "b": "1"} | ({"c": "3"} if size <= PART else {})
    assert world.client.options(KEY).metadata == expected


@pytest.mark.parametrize(("size", "parts"), [(PART + 1, 2), (2 * PART, 2), (3 * PART + 7, 4)])
@pytest.mark.parametrize("name", ["crc32c", "crc64nvme", None])
def test_more_is_sent_in_parts(world: World, size: int, parts: int, name: str | None) -> None:
    """A larger file is created, sent in parts, completed and checked, without further requests."""
    world.configure(checksum=name)
    world.client.min_part_bytes = PART
    data = data_of(size)
    upload = world.upload()
    world.write(upload, data, 777_777)
    info = upload.finish()
    assert sorted(world.kinds()) == sorted(
        ["create_upload", *["upload_part"] * parts, "complete_upload", "head"]
    )
    assert world.kinds()[-2:] == ["complete_upload", "head"]
    assert world.client.content(KEY) == data
    assert info == world.client.info(KEY)
    known = world.client.head_with_checksums(KEY).result(SAFE_S).checksums
    assert list(known) == ([name] if name else [])
    world.check_over()


@given(st.lists(st.integers(1, 3 * PART), min_size=1, max_size=5))
@settings(max_examples=examples(10), deadline=None, suppress_health_check=list(HealthCheck))
def test_writes_of_any_size(sizes: list[int]) -> None:
    """With writes of any size, the object has their bytes."""
    with FakeClient() as client:
        world = World(client)
        upload = world.upload()
        data = data_of(sum(sizes))
        start = 0
        for size in sizes:
            upload.write(start, data[start : start + size])
            start += size
        assert upload.finish().size_bytes == len(data)
        assert client.content(KEY) == data
        world.check_over()


def test_zeros_take_slots_as_all_bytes_do(world: World) -> None:
    """A last part that zeros have enlarged takes a slot of its size."""

    def last_arrives_last(request: Request) -> None:
        if request.kind == "upload_part" and request.number == 3:
            until(lambda: world.uploads._in_flight_bytes <= request.size_bytes)

    world.client.script = last_arrives_last
    for written in (0, 5, 2 * PART + 3):
        upload = world.upload(Condition())
        world.write(upload, data_of(written))
        upload.finish(2 * PART + 7)
        assert world.client.content(KEY) == data_of(written) + bytes(2 * PART + 7 - written)
        world.check_over()


def test_finishing_again_is_the_same_answer(world: World) -> None:
    """`fsync` and two closes of one file are one upload, even in parallel."""
    upload = world.upload()
    world.write(upload, data_of(PART + 5))
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(upload.finish) for _ in range(8)]
        infos = {future.result(SAFE_S).etag for future in futures}
    assert len(infos) == 1
    assert world.client.count("complete_upload") == 1
    with pytest.raises(errors.NotSequential):
        upload.write(PART + 5, b"more")
    assert upload.finish().etag in infos
    upload.abort()  # no effect after `finish`
    assert world.client.content(KEY) == data_of(PART + 5)
    world.check_over()


def test_options(world: World) -> None:
    """Storage class and mtime of the new object are known without a request."""
    world.configure(storage_class="STANDARD_IA")
    upload = world.upload()
    info = upload.finish()
    assert (info.storage_class, info.mtime_ns) == ("STANDARD_IA", MTIME_NS)


def test_stores_without_checksums(world: World) -> None:
    """A server without checksums is accepted."""
    world.client.knows_checksums = False
    upload = world.upload()
    world.write(upload, data_of(2 * PART))
    upload.finish()
    assert world.client.content(KEY) == data_of(2 * PART)


def test_stores_without_conditions(world: World) -> None:
    """If the server does not support If-None-Match, it is omitted, and not tried again."""
    world.client.knows_conditions = False
    for size in (5, PART + 5, 5):
        upload = world.upload()
        world.write(upload, data_of(size))
        upload.finish()
        assert world.client.content(KEY) == data_of(size)
    assert [r.condition.absent for r in world.client.requests if r.kind == "put_object"] == [
        True,
        False,
        False,
    ]


def test_conditions_refused_of_several_at_once(world: World) -> None:
    """Requests sent before the first refusal are repeated without the header."""
    world.client.knows_conditions = False
    barrier = threading.Barrier(4)

    def together(request: Request) -> None:
        if request.kind == "put_object" and request.condition.absent:
            barrier.wait(SAFE_S)

    world.client.script = together
    uploads = [world.uploads.upload(b"file-%d" % n, condition=ABSENT) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(upload.finish) for upload in uploads]:
            future.result(SAFE_S)
    assert world.client.count("put_object") == 8


REFUSALS = {
    "named": errors.ChecksumsNotOffered("InvalidArgument: Unsupported header", status=400),
    "not named": errors.NotOffered("NotImplemented: a header", status=501),
}


@pytest.mark.parametrize("knows_conditions", [True, False])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_stores_that_refuse_checksums(world: World, refusal: str, knows_conditions: bool) -> None:
    """After one refusal they get no checksums, with one warning; all else stays."""
    world.client.refuses_checksums = REFUSALS[refusal]
    world.client.knows_conditions = knows_conditions
    with capture_logs() as lines:
        for size in (5, 2 * PART + 5, 5):
            upload = world.upload()
            world.write(upload, data_of(size))
            upload.finish()
            assert world.client.content(KEY) == data_of(size)
            world.client.delete(KEY)
    assert [line["log_level"] for line in lines if "no checksums" in line["event"]] == ["warning"]
    puts = [r.condition.absent for r in world.client.requests if r.kind == "put_object"]
    if refusal == "named" and knows_conditions:
        assert puts == [True, True, True]
    assert world.client.count("create_upload") == 1
    assert world.client.count("upload_part") == 3
    world.check_over()


def test_refused_at_the_beginning_of_an_upload(world: World) -> None:
    """The first refusal of a checksum may come at the start of a large file."""
    world.client.refuses_checksums = REFUSALS["named"]
    upload = world.upload()
    world.write(upload, data_of(2 * PART + 5))
    info = upload.finish()
    assert world.client.content(KEY) == data_of(2 * PART + 5)
    assert info.size_bytes == 2 * PART + 5
    assert world.client.count("create_upload") == 2
    world.check_over()


# --- order ---


@pytest.mark.parametrize("offset", [0, 99, 101])
@pytest.mark.parametrize("written", [100, PART + 100])
def test_only_the_next_offset(world: World, offset: int, written: int) -> None:
    """A write elsewhere fails, and so does the upload: no object is created."""
    upload = world.upload()
    world.write(upload, data_of(written), written)
    with pytest.raises(errors.NotSequential):
        upload.write(offset + written - 100, b"x")
    with pytest.raises(errors.NotSequential):
        upload.write(written, b"x")
    with pytest.raises(errors.NotSequential):
        upload.finish()
    upload.abort()
    assert world.client.keys() == []
    world.check_over()


# --- faults ---


@pytest.mark.parametrize("kind", ["create_upload", "upload_part", "complete_upload", "head"])
@pytest.mark.parametrize("error", [errors.Throttled, errors.ServerFault, errors.TransportFault])
def test_faults_are_tried_again(world: World, kind: str, error: type[Exception]) -> None:
    """Faults that may be temporary are retried, each on its own."""
    world.client.inject(kind, *[Fault(error=error("a fault"))] * 2)
    upload = world.upload()
    world.write(upload, data_of(3 * PART))
    upload.finish()
    assert world.client.content(KEY) == data_of(3 * PART)
    assert world.counters.snapshot()["retries"] == 2
    world.check_over()


def test_a_bad_digest_is_sent_again(world: World) -> None:
    """A corrupted body is sent again."""
    world.client.inject("put_object", Fault(error=errors.BadDigest("changed")))
    upload = world.upload()
    world.write(upload, b"data")
    upload.finish()
    assert world.kinds() == ["put_object"] * 2


@pytest.mark.parametrize("size", [10, 2 * PART])
@pytest.mark.parametrize("condition", [Condition(), ABSENT])
def test_a_lost_answer(world: World, size: int, condition: Condition) -> None:
    """A request that succeeded without an answer is detected, and counts as a success."""
    kind = "put_object" if size < PART else "complete_upload"
    world.client.inject(kind, Fault(lost=True))
    upload = world.upload(condition)
    world.write(upload, data_of(size))
    info = upload.finish()
    assert info == world.client.info(KEY)
    assert world.client.content(KEY) == data_of(size)
    assert world.client.count("abort_upload") == 0
    world.check_over()


@pytest.mark.parametrize("size", [10, 2 * PART])
@pytest.mark.parametrize("checksums", [True, False])
def test_a_lost_answer_by_etag(world: World, size: int, checksums: bool) -> None:
    """If stores have no checksums, the ETag decides."""
    world.client.knows_checksums = checksums
    world.client.inject("put_object", Fault(lost=True))
    world.client.inject("complete_upload", Fault(lost=True))
    upload = world.upload()
    world.write(upload, data_of(size))
    assert upload.finish().etag == world.client.info(KEY).etag


def test_a_lost_answer_of_the_last_try(world: World) -> None:
    """Even without time for another try."""
    world.configure(total_s=0.0)
    world.client.inject("put_object", Fault(lost=True))
    upload = world.upload()
    world.write(upload, b"data")
    upload.finish()
    assert world.kinds() == ["put_object", "head"]


@pytest.mark.parametrize("size", [10, 2 * PART])
def test_somebody_else_was_first(world: World, size: int) -> None:
    """A conflict at the first try is a conflict, without another request."""
    world.client.put(KEY, data_of(size)[::-1])
    upload = world.upload()
    world.write(upload, data_of(size))
    with pytest.raises(errors.AlreadyExists):
        upload.finish()
    assert world.client.count("head") == 0
    upload.abort()
    assert world.client.content(KEY) == data_of(size)[::-1]
    world.check_over()


@pytest.mark.parametrize("size", [10, 2 * PART])
def test_somebody_else_was_first_after_a_fault(world: World, size: int) -> None:
    """A conflict after our own failed try counts if the object, of the same size, is not ours."""
    kind = "put_object" if size < PART else "complete_upload"

    def script(request: Request) -> Fault | None:
        if request.kind == kind and not world.client.keys():
            world.client.put(KEY, data_of(size)[::-1])
            return Fault(error=errors.ServerFault("a fault"))
        return None

    world.client.script = script
    upload = world.upload()
    world.write(upload, data_of(size))
    with pytest.raises(errors.AlreadyExists):
        upload.finish()
    upload.abort()
    assert world.client.content(KEY) == data_of(size)[::-1]
    world.check_over()


def test_overwriting_one_version(world: World) -> None:
    """With an ETag only that version is replaced, also by a try whose answer was lost."""
    first = world.client.put(KEY, b"first")
    world.client.inject("put_object", Fault(lost=True))
    upload = world.upload(Condition(etag=first.etag))
    world.write(upload, b"second")
    upload.finish()
    assert world.client.content(KEY) == b"second"
    late = world.upload(Condition(etag=first.etag))
    world.write(late, b"third")
    with pytest.raises(errors.PreconditionFailed) as caught:
        late.finish()
    assert not isinstance(caught.value, errors.AlreadyExists)
    assert world.client.content(KEY) == b"second"


@pytest.mark.parametrize("kind", ["create_upload", "upload_part"])
def test_a_refusal_in_flight_comes_with_the_next_call(world: World, kind: str) -> None:
    """The error of a part is reported once it is known, and permanently; nothing is completed."""
    world.client.inject(kind, Fault(error=errors.AccessDenied("no")))
    upload = world.upload()
    with suppress(errors.AccessDenied):  # if it is known already
        world.write(upload, data_of(PART + 1))
    until_s = time.monotonic() + SAFE_S
    while upload._failure is None:
        assert time.monotonic() < until_s
        time.sleep(0.001)
    for call in (upload.check, upload.finish, lambda: upload.write(PART + 1, b"x"), upload.check):
        with pytest.raises(errors.AccessDenied):
            call()
    upload.abort()
    assert world.client.keys() == []
    assert world.client.count("complete_upload") == 0
    world.check_over()


@pytest.mark.parametrize("size", [10, 2 * PART])
def test_another_size_than_was_written(world: World, size: int) -> None:
    """A server that lost bytes of an upload in parts is noticed."""

    def script(request: Request) -> Fault | None:
        if request.kind == "head":
            info = world.client.info(KEY)
            world.client._objects[KEY] = (
                ObjectInfo(KEY, 5, info.mtime_ns, info.etag),
                b"short",
            )
        return None

    world.client.script = script
    upload = world.upload()
    world.write(upload, data_of(size))
    if size < PART:
        upload.finish()  # a single body has its length: no check is needed
        return
    with pytest.raises(errors.BadAnswer):
        upload.finish()


def test_answers_that_are_faster_than_the_sender(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is completed before all parts exist, even if one arrives while it is sent."""
    upload_part = world.client.upload_part

    def at_once(*args: object) -> object:
        future = upload_part(*args)  # type: ignore[arg-type]
        future.exception(SAFE_S)
        return future

    monkeypatch.setattr(world.client, "upload_part", at_once)
    world.client.inject("create_upload", Fault(delay_s=0.1))
    upload = world.upload()
    world.write(upload, data_of(3 * PART))
    upload.finish()
    assert world.client.content(KEY) == data_of(3 * PART)
    world.check_over()


# --- silence ---


@pytest.mark.parametrize("kind", ["create_upload", "upload_part", "put_object"])
def test_silence_is_noticed(world: World, kind: str) -> None:
    """A request without an answer is cancelled and sent again."""
    world.configure(try_s=0.4, stall_s=0.4)
    world.uploads.allowed_s = lambda size_bytes: 0.4  # type: ignore[method-assign]
    world.client.inject(kind, Fault(silent=True))
    upload = world.upload()
    size = 5 if kind == "put_object" else 2 * PART
    world.write(upload, data_of(size))
    upload.finish()
    assert world.client.content(KEY) == data_of(size)
    assert world.client.cancelled == 1
    world.check_over()


def test_waiting_has_an_end(world: World) -> None:
    """If the server never answers, the upload fails after the total time."""
    world.configure(try_s=0.02, total_s=0.2, stall_s=0.02)
    world.uploads.allowed_s = lambda size_bytes: 0.02  # type: ignore[method-assign]
    world.client.script = lambda request: Fault(silent=True)
    upload = world.upload()
    world.write(upload, b"data")
    with pytest.raises(errors.Stalled):
        upload.finish()
    world.check_over()


def test_time_allowed_for_a_part(world: World) -> None:
    """As long as all bytes in flight take on a slow line; later four times the usual duration."""
    world.configure(stall_s=5.0)
    upload = world.upload()
    for in_flight in range(4):
        assert world.uploads.take_slot(upload, in_flight, PART)
    assert world.uploads.allowed_s(PART) == 5.0 + 4 * 20.0
    world.uploads.release_slot(upload, PART)
    world.uploads.arrived(PART, 2.0, waited=False)
    assert world.uploads.allowed_s(PART) == pytest.approx(5.0 + 8.0)
    assert world.uploads.allowed_s(2 * PART) == pytest.approx(5.0 + 16.0)
    upload.abort()
    world.check_over()


# --- memory ---


#: Parts of many files, below S3's minimum.
SMALL_PART = 256 << 10


class Watched(World):
    """A world with little memory that records the peaks of memory and bytes in flight."""

    def __init__(self, client: FakeClient, limit_bytes: int = 4 * SMALL_PART) -> None:
        super().__init__(client, limit_bytes)
        self.configure(part_bytes=SMALL_PART)
        self.max_in_flight_bytes = 0
        client.script = self.watch

    def watch(self, request: Request) -> Fault | None:
        in_flight = self.uploads._in_flight_bytes
        self.max_in_flight_bytes = max(self.max_in_flight_bytes, in_flight)
        self.max_held_bytes = max(self.max_held_bytes, self.budget.held_bytes)
        return Fault(delay_s=0.002) if request.kind == "upload_part" else None

    def key(self, number: int) -> bytes:
        return b"file-%d" % number

    def check_files(self, sizes: list[int]) -> None:
        for number, size in enumerate(sizes):
            assert self.client.content(self.key(number)) == data_of(size)
        self.check_over()
        assert self.max_held_bytes <= self.budget.limit_bytes
        assert self.max_in_flight_bytes <= self.budget.limit_bytes * 3 // 4


@pytest.mark.parametrize("step", [64 << 10, 6_000])
def test_many_files_written_in_turn(step: int) -> None:
    """One thread writes more files in turn than fit into memory: bounded, and no deadlock."""
    with FakeClient() as client:
        world = Watched(client)
        size = 2 * SMALL_PART + 1
        uploads = [world.uploads.upload(world.key(number)) for number in range(24)]
        data = data_of(size)
        spilled = 0
        for start in range(0, size, step):
            for upload in uploads:
                upload.write(start, data[start : start + step])
            spilled = max(spilled, world.spill.files)
        # Each upload has the part being gathered, and parts in flight.
        assert len(uploads) // 2 < spilled <= 2 * len(uploads)
        for upload in uploads:
            upload.finish()
        world.check_files([size] * len(uploads))


def test_many_files_written_by_threads() -> None:
    """The same with threads that write as fast as possible, and all close at the same time."""
    with FakeClient() as client:
        world = Watched(client)
        sizes = [SMALL_PART - 1, SMALL_PART + 1, 3 * SMALL_PART] * 8

        def write(number: int) -> None:
            upload = world.uploads.upload(world.key(number))
            world.write(upload, data_of(sizes[number]), 64 << 10)
            upload.finish()

        with ThreadPoolExecutor(len(sizes)) as pool:
            list(pool.map(write, range(len(sizes))))
        world.check_files(sizes)


def test_small_files_take_memory_of_their_size() -> None:
    """A file smaller than a part takes no more memory than its bytes."""
    with FakeClient() as client:
        world = Watched(client)
        uploads = [world.uploads.upload(world.key(number)) for number in range(100)]
        for upload in uploads:
            world.write(upload, data_of(10_000))
        assert world.budget.held_bytes == 100 * 10_000
        assert [upload.pending_bytes for upload in uploads] == [10_000] * 100
        assert world.spill.files == 0
        for upload in uploads:
            upload.finish()
        world.check_files([10_000] * 100)


def test_pending_bytes() -> None:
    """Bytes that S3 does not have are pending, in memory or not."""
    with FakeClient() as client:
        world = World(client, limit_bytes=PART)
        upload = world.upload()
        world.write(upload, data_of(3 * PART))
        client.quiet()
        assert upload.pending_bytes == PART, "it may become larger"
        world.write(upload, data_of(7))
        client.quiet()
        assert upload.pending_bytes == 7
        upload.finish()
        assert upload.pending_bytes == 0
        world.check_over()


@pytest.mark.parametrize("over", ["written", "given up"])
def test_parts_do_not_wait_for_the_collector(over: str) -> None:
    """A part's bytes are freed when it has arrived, or its upload has failed."""
    with FakeClient() as client:
        world = World(client, limit_bytes=1)
        upload = world.upload()
        gc.disable()
        try:
            world.write(upload, data_of(4 * PART + 2))
            if over == "written":
                until(lambda: world.spill.files == 1)  # the last part
                upload.finish()
            else:
                upload.abort()
            until(lambda: world.spill.files == 0)
        finally:
            gc.enable()
        world.check_over()


def test_a_part_that_is_larger_than_memory() -> None:
    """Such a part is sent when nothing else is in flight."""
    with FakeClient() as client:
        world = World(client, limit_bytes=PART // 2)
        world.write(upload := world.upload(), data_of(3 * PART))
        assert world.max_held_bytes <= PART // 2
        upload.finish()
        assert client.content(KEY) == data_of(3 * PART)
        world.check_over()


def test_slots_are_given_in_order(world: World) -> None:
    """The upload that has waited longest gets the next slot."""
    line = world.uploads
    first, second, third, fourth = (world.uploads.upload(b"%d" % n) for n in range(4))
    most = world.uploads._concurrency.parts * PART
    assert line.take_slot(first, 0, most)
    assert not line.take_slot(second, 0, PART)
    assert not line.take_slot(third, 0, 1)
    assert not line.take_slot(fourth, 0, 1, queues=False)
    line.release_slot(first, most)
    assert not line.take_slot(third, 0, 1)
    second.abort()
    assert not line.take_slot(fourth, 0, 1, queues=False)
    assert line.take_slot(third, 0, 1)
    assert line.take_slot(fourth, 0, 1, queues=False)
    for upload in (first, third, fourth):
        upload.abort()
    world.check_over()


def test_uploads_without_a_waiting_thread_do_not_hold_others_up() -> None:
    """The sweep sends a silent part again, so its slot becomes free."""
    with FakeClient() as client:
        world = World(client, limit_bytes=PART)
        silent, other = world.uploads.upload(b"silent"), world.uploads.upload(b"other")
        client.inject("upload_part", Fault(silent=True))
        world.write(silent, data_of(PART + 1))
        world.write(other, data_of(PART))
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(other.finish)
            while not world.uploads._queue:
                time.sleep(0.001)
            for request in silent._requests._open:
                request.late_s = 0.0
            while not future.done():
                world.uploads.sweep()
                time.sleep(0.001)
            future.result()
        silent.finish()
        world.check_over()


# --- memory, where there is no disk ---


@pytest.mark.slow
@pytest.mark.parametrize("writers", [1, 4])
def test_the_budget_is_never_exceeded(writers: int) -> None:
    """Writers wait for memory instead of taking more, and release all of it.

    But each may gather one part, because otherwise none could continue if others hold all.
    """
    with FakeClient() as client:
        client.script = lambda request: Fault(delay_s=0.002)
        world = without_disk(client, 8 * PART)

        def write(number: int) -> None:
            upload = world.uploads.upload(b"file-%d" % number)
            world.write(upload, data_of(12 * PART), 131_072)
            upload.finish()

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writers)))
        assert len(client.keys()) == writers
        assert 2 * PART < world.max_held_bytes <= (8 + writers - 1) * PART
        world.check_over()


def test_many_writers_and_little_memory() -> None:
    """More files than fit into memory continue, one part at a time."""
    with FakeClient() as client:
        world = without_disk(client, PART)
        uploads = [world.uploads.upload(b"file-%d" % number) for number in range(6)]
        for start in range(0, 2 * PART, MIB):
            for upload in uploads:
                upload.write(start, data_of(MIB))
                assert world.budget.held_bytes <= 6 * (PART + MIB)
        for upload in uploads:
            upload.finish()
        world.check_over()


def without_disk(client: FakeClient, limit_bytes: int) -> World:
    """Return a world that cannot write temporary files."""
    world = World(client, limit_bytes)
    world.spill = CountedSpill()
    world.configure()
    return world


def test_readers_and_writers_share(world: World) -> None:
    """A writer continues if readers hold all memory, and the reverse."""
    reader = world.budget.lease()
    reader.take(world.budget.limit_bytes)
    upload = world.upload()
    world.write(upload, data_of(3 * PART))
    assert not reader.try_take(1)
    upload.finish()
    reader.give(reader.held_bytes)
    assert reader.try_take(MIB)
    reader.give(MIB)
    world.check_over()


def test_a_writer_waits_for_parts_in_flight(world: World) -> None:
    """With all its parts in flight a writer waits, and continues when one has arrived."""
    gate = threading.Event()

    def script(request: Request) -> Fault | None:
        if request.kind == "upload_part":
            gate.wait(SAFE_S)
        return None

    world.client.script = script
    upload = world.upload()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(world.write, upload, data_of(12 * PART))
        time.sleep(0.1)
        assert not future.done()
        assert upload.size_bytes <= 9 * PART
        gate.set()
        future.result(SAFE_S)
    upload.finish()
    world.check_over()


# --- the end ---


@pytest.mark.parametrize("size", [0, 100, 3 * PART])
def test_abort(world: World, size: int) -> None:
    """An aborted upload leaves nothing: no object, no parts, no memory."""
    upload = world.upload()
    world.write(upload, data_of(size))
    upload.abort()
    upload.abort()
    with pytest.raises(errors.Interrupted):
        upload.write(size, b"x")
    with pytest.raises(errors.Interrupted):
        upload.finish()
    assert world.client.keys() == []
    world.check_over()


def test_abort_before_the_id_is_known(world: World) -> None:
    """The upload is aborted when its id arrives."""
    world.client.inject("create_upload", Fault(delay_s=0.1))
    upload = world.upload()
    world.write(upload, data_of(PART + 1))
    upload.abort()
    assert world.kinds() == ["create_upload", "abort_upload"]
    world.check_over()


def test_abort_does_not_begin_anything(world: World) -> None:
    """An upload that could not be created, and would be retried, is not created for the abort."""
    fault = Fault(error=errors.Throttled("slow down"))
    world.client.inject("create_upload", fault, fault, fault)
    upload = world.upload()
    world.write(upload, data_of(PART + 1))
    world.client.quiet()
    upload.abort()
    assert set(world.kinds()) == {"create_upload"}
    world.check_over()


def test_abort_is_tried_again_and_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault is retried; a silent server is not waited for."""
    monkeypatch.setattr("mountpoint.upload.upload.ABORT_S", 0.2)
    world.client.inject("abort_upload", Fault(error=errors.Throttled("slow down")))
    upload = world.upload()
    world.write(upload, data_of(2 * PART))
    upload.abort()
    assert world.client.uploads == {}
    silent = world.upload()
    world.write(silent, data_of(2 * PART))
    world.client.quiet()
    world.client.inject("abort_upload", *[Fault(silent=True)] * 10)
    began_s = time.monotonic()
    silent.abort()
    assert time.monotonic() - began_s < SAFE_S / 2
    assert len(world.client.uploads) == 1


@pytest.mark.parametrize("kind", ["put_object", "upload_part", "complete_upload"])
def test_the_end_of_the_mount(world: World, kind: str) -> None:
    """The end wakes all waits, and leaves no parts."""
    world.client.inject(kind, *[Fault(silent=True)] * 100)
    upload = world.upload()
    with ThreadPoolExecutor(1) as pool:
        world.write(upload, data_of(5 if kind == "put_object" else 2 * PART))
        future = pool.submit(upload.finish)
        until_s = time.monotonic() + SAFE_S
        while not world.client.count(kind):
            assert time.monotonic() < until_s
            time.sleep(0.001)
        world.uploads.interrupt()
        with pytest.raises(errors.Interrupted):
            future.result(SAFE_S)
    with pytest.raises(errors.Interrupted):
        world.upload()
    assert world.client.keys() == []
    world.check_over()


def test_an_interrupted_client(world: World) -> None:
    """If the client ends first the writer gets the error, and nothing waits."""
    world.client.inject("upload_part", *[Fault(silent=True)] * 100)
    upload = world.upload()
    world.write(upload, data_of(2 * PART))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(upload.finish)
        time.sleep(0.05)
        world.client.interrupt()
        with pytest.raises(errors.Interrupted):
            future.result(SAFE_S)
    upload.abort()
    assert world.budget.held_bytes == 0


def test_a_bug_in_a_callback_is_not_a_hang(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in our own code is an error of the upload."""

    def bug(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Upload, "_complete", bug)
    upload = world.upload()
    world.write(upload, data_of(2 * PART))
    with pytest.raises(RuntimeError, match="a bug"):
        upload.finish()
    upload.abort()
    world.check_over()
