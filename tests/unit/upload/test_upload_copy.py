"""Uploads with ranges of other objects: copied by the server, or read if that is impossible."""

import functools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mountpoint import errors
from mountpoint.s3.client import Condition, ObjectInfo
from mountpoint.upload.parts import Limits
from mountpoint.upload.upload import Upload
from tests.soak import examples
from tests.unit.fake_client import SAFE_S, FakeClient, Fault, Request
from tests.unit.uploading import KEY, MIB, PART, World, data_of
from tests.unit.waiting import until

SOURCE = b"source"


@functools.lru_cache(16)
def random_bytes(size: int, seed: int = 0) -> bytes:
    """Return bytes without similar ranges."""
    return random.Random(seed).randbytes(size)


@pytest.fixture
def world() -> Iterator[World]:
    """A world whose S3 has no faults, and its limits for parts."""
    with FakeClient() as client:
        client.min_part_bytes = PART
        yield World(client)


def put(world: World, size: int) -> tuple[ObjectInfo, bytes]:
    """Put a source of this size."""
    data = random_bytes(size)
    return world.client.put(SOURCE, data), data


def copy_and_finish(upload: Upload, info: ObjectInfo) -> None:
    """Make a copy; the caller does not need to know which of the two calls fails."""
    upload.copy(info, 0, info.size_bytes)
    upload.finish()


# --- what works ---


def test_small_sources_and_small_writes_are_one_put(world: World) -> None:
    """A small object is read and put: two requests."""
    info, data = put(world, 1000)
    upload = world.upload()
    upload.copy(info, 0, 1000)
    assert upload.size_bytes == 1000
    upload.write(1000, b"appended")
    upload.finish()
    assert world.kinds() == ["get", "put_object"]
    assert world.client.content(KEY) == data + b"appended"
    world.check_over()


def test_appending(world: World) -> None:
    """The server copies larger ranges, and nothing of them is read."""
    info, data = put(world, 3 * PART + 5)
    upload = world.upload()
    upload.copy(info, 0, info.size_bytes)
    world.write(upload, b"appended")
    found = upload.finish()
    assert world.kinds() == ["create_upload", "copy_part", "upload_part", "complete_upload", "head"]
    assert world.client.content(KEY) == data + b"appended"
    assert found == world.client.info(KEY)
    world.check_over()


def test_appending_to_itself(world: World) -> None:
    """An object can be copied to its own key, if it is still the same version."""
    info, data = put(world, PART + 1)
    upload = world.uploads.upload(SOURCE, condition=Condition(etag=info.etag))
    upload.copy(info, 0, info.size_bytes)
    world.write(upload, b"appended")
    upload.finish()
    assert world.client.content(SOURCE) == data + b"appended"
    world.check_over()


def test_nothing_is_copied(world: World) -> None:
    """An empty range sends no request."""
    info, _ = put(world, 10)
    upload = world.upload()
    upload.copy(info, 5, 5)
    upload.finish()
    assert world.kinds() == ["put_object"]
    assert world.client.content(KEY) == b""


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 11)])
def test_no_such_range(world: World, start: int, stop: int) -> None:
    """A range beyond the source is a programming error, and changes nothing."""
    info, _ = put(world, 10)
    upload = world.upload()
    with pytest.raises(ValueError, match="of 10"):
        upload.copy(info, start, stop)
    upload.finish()


def test_gathered_bytes_are_completed_to_a_part_first(world: World) -> None:
    """Before a copied part, enough bytes are read to complete the written one."""
    info, data = put(world, 4 * PART)
    upload = world.upload()
    world.write(upload, b"new")
    upload.copy(info, 3, 4 * PART)
    upload.finish()
    assert world.client.content(KEY) == b"new" + data[3:]
    copied = [request for request in world.client.requests if request.kind == "copy_part"]
    assert [(each.start, each.stop) for each in copied] == [(PART, 4 * PART)]
    assert sum(stop - start for start, stop in world.client.ranges()) == PART - 3
    world.check_over()


@pytest.mark.slow
def test_unchanged_ranges_and_new_bytes(world: World) -> None:
    """A large file with few changes is mostly copied."""
    info, data = put(world, 12 * PART)
    expected = bytearray(data)
    upload = world.upload()
    for start in range(0, 12 * PART, 4 * PART):
        upload.copy(info, start, start + 4 * PART - 1000)
        world.write(upload, b"n" * 1000)
        expected[start + 4 * PART - 1000 : start + 4 * PART] = b"n" * 1000
    upload.finish()
    assert world.client.content(KEY) == bytes(expected)
    read = sum(stop - start for start, stop in world.client.ranges())
    assert read < 3 * PART
    world.check_over()


def test_a_source_that_is_too_small_to_be_copied(world: World) -> None:
    """A source no larger than the least part is read, because S3 copies no ranges of it."""
    info, data = put(world, PART)
    upload = world.upload()
    upload.copy(info, 0, PART)
    world.write(upload, b"more")
    upload.finish()
    assert world.client.count("copy_part") == 0
    assert world.client.content(KEY) == data + b"more"


@pytest.mark.parametrize("name", ["crc32c", "crc64nvme", None])
@pytest.mark.parametrize("tells", [True, False])
def test_checksums(world: World, name: str | None, tells: bool) -> None:
    """Copied parts have the server's checksum; without it the object has none."""
    world.configure(checksum=name)
    world.client.tells_of_copies = tells
    wholes = []
    complete = world.client.complete_upload

    def noted(*args: object, **more: object) -> object:
        wholes.append(more["checksum"])
        return complete(*args, **more)  # type: ignore[arg-type]

    world.client.complete_upload = noted  # type: ignore[assignment,method-assign]
    info, data = put(world, 2 * PART)
    upload = world.upload()
    upload.copy(info, 0, 2 * PART)
    world.write(upload, data_of(PART))
    upload.copy(info, 7, 2 * PART)
    upload.finish()
    assert world.client.content(KEY) == data + data_of(PART) + data[7:]
    assert (wholes[0] is not None) == (tells and name is not None)
    world.check_over()


@pytest.mark.slow
@given(st.data())
@settings(max_examples=examples(30), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sequence_is_the_concatenation(draws: st.DataObject) -> None:
    """Writes and copies in any order: the object has exactly their bytes."""
    least = MIB
    part = draws.draw(st.sampled_from([least, least + 300_000, 2 * least]), "part")
    limits = Limits(least, draws.draw(st.sampled_from([least, 2 * least, 3 * least]), "copied"))
    with FakeClient() as client:
        client.min_part_bytes = least
        world = World(client, 8 * MIB, limits)
        name = draws.draw(st.sampled_from(["crc32c", "crc64nvme", None]), "checksum")
        world.configure(part_bytes=part, checksum=name)
        small = client.put(b"small", random_bytes(200_000, 1))
        large = client.put(b"large", random_bytes(9 * MIB, 2))
        upload = world.upload()
        expected = b""
        for _ in range(draws.draw(st.integers(1, 6), "steps")):
            if draws.draw(st.booleans(), "copies"):
                source = draws.draw(st.sampled_from([small, large]))
                bounds = st.integers(0, source.size_bytes)
                start, stop = sorted([draws.draw(bounds), draws.draw(bounds)])
                upload.copy(source, start, stop)
                expected += client.content(source.key)[start:stop]
            else:
                size = draws.draw(st.sampled_from([1, 1000, least - 1, least, 2_500_000]))
                data = random_bytes(size, len(expected))
                world.write(upload, data)
                expected += data
            assert upload.size_bytes == len(expected)
        info = upload.finish()
        assert client.content(KEY) == expected
        assert info == client.info(KEY)
        world.check_over()


# --- faults ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["get", "copy_part", "create_upload", "complete_upload"])
@pytest.mark.parametrize("error", [errors.Throttled, errors.ServerFault, errors.TransportFault])
def test_faults_are_tried_again(world: World, kind: str, error: type[Exception]) -> None:
    """Faults that may be temporary are retried."""
    world.client.inject(kind, *[Fault(error=error("a fault"))] * 2)
    info, data = put(world, 3 * PART)
    upload = world.upload()
    world.write(upload, b"new")
    upload.copy(info, 0, 3 * PART)
    upload.finish()
    assert world.client.content(KEY) == b"new" + data
    assert world.counters.snapshot()["retries"] == 2
    world.check_over()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(cut=1000),
        Fault(shift=1),
        Fault(extra=b"more"),
        Fault(cut=1000, error=errors.TransportFault("cut")),
        Fault(error=errors.ChecksumMismatch("changed on the way")),
    ],
)
def test_bytes_of_another_range(world: World, fault: Fault) -> None:
    """Too few bytes, too many, or those of another offset are requested again."""
    world.client.inject("get", fault)
    info, data = put(world, 3000)
    upload = world.upload()
    upload.copy(info, 0, 3000)
    upload.finish()
    assert world.client.content(KEY) == data
    assert world.client.count("get") == 2
    world.check_over()


@pytest.mark.parametrize("kind", ["get", "copy_part"])
def test_a_lost_answer_of_a_part(world: World, kind: str) -> None:
    """A part that was copied without an answer is copied again, with its number."""
    world.client.inject(kind, Fault(lost=kind != "get", silent=kind == "get"))
    world.configure(try_s=0.1)
    world.uploads.allowed_s = lambda size_bytes: SAFE_S  # type: ignore[method-assign]
    info, data = put(world, 1000 if kind == "get" else 2 * PART)
    upload = world.upload()
    upload.copy(info, 0, info.size_bytes)
    upload.finish()
    assert world.client.content(KEY) == data
    world.check_over()


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("tells", [True, False])
def test_a_lost_answer_of_the_completion(world: World, checksums: bool, tells: bool) -> None:
    """An object of copied parts is recognised as ours, by checksum or ETag."""
    world.client.knows_checksums = checksums
    world.client.tells_of_copies = tells
    world.client.inject("complete_upload", Fault(lost=True))
    info, data = put(world, 2 * PART)
    upload = world.upload()
    upload.copy(info, 0, 2 * PART)
    world.write(upload, b"more")
    assert upload.finish().etag == world.client.info(KEY).etag
    assert world.client.content(KEY) == data + b"more"
    world.check_over()


@pytest.mark.parametrize("size", [100, 3 * PART])
@pytest.mark.parametrize("gone", [True, False])
def test_another_version(world: World, size: int, gone: bool) -> None:
    """A source that has changed or is gone fails the upload: none of it is used."""
    info, _ = put(world, size)
    if gone:
        world.client.delete(SOURCE)
    else:
        world.client.put(SOURCE, random_bytes(size, 9))
    upload = world.upload()
    expected = errors.NotFound if gone else errors.PreconditionFailed
    with pytest.raises(expected) as caught:
        copy_and_finish(upload, info)
    assert not isinstance(caught.value, errors.AlreadyExists)
    with pytest.raises(expected):
        upload.write(upload.size_bytes, b"x")
    upload.abort()
    assert world.client.keys() in ([], [SOURCE])
    assert world.client.count("complete_upload") == 0
    world.check_over()


def test_a_store_that_knows_no_if_match(world: World) -> None:
    """Bytes of another version are rejected, even if the store sends them."""
    info, _ = put(world, 100)
    world.client.inject("get", Fault(etag='"another"'))
    upload = world.upload()
    with pytest.raises(errors.PreconditionFailed):
        upload.copy(info, 0, 100)
    upload.abort()
    world.check_over()


def test_a_refusal_is_for_good(world: World) -> None:
    """A permanent error fails the upload, and leaves no parts."""
    world.client.inject("copy_part", Fault(error=errors.AccessDenied("no")))
    info, _ = put(world, 2 * PART)
    upload = world.upload()
    with pytest.raises(errors.AccessDenied):
        copy_and_finish(upload, info)
    upload.abort()
    assert world.client.keys() == [SOURCE]
    world.check_over()


NO_COPIES = [
    errors.NotOffered("a header", code="NotImplemented", status=501),
    errors.S3Error("not known", code="InvalidRequest", status=400),
    errors.S3Error("not allowed", code="MethodNotAllowed", status=405),
    errors.ChecksumsNotOffered("checksum missing", code="InvalidRequest", status=400),
]


@pytest.mark.slow
@pytest.mark.parametrize("error", NO_COPIES, ids=lambda error: f"{error.status}-{error.code}")
@pytest.mark.parametrize("written", [0, 1000, PART + 1000])
def test_a_store_that_copies_no_parts(world: World, error: errors.S3Error, written: int) -> None:
    """The bytes are read and sent; the copy is tried once in total, and the log says so."""
    world.client.be_unknown()
    world.limits = Limits(PART, PART)
    world.configure()
    refused = Fault(error=error)
    world.client.script = lambda request: refused if request.kind == "copy_part" else None
    info, data = put(world, 4 * PART + 7)
    first, last = random_bytes(written, 1), random_bytes(300, 2)
    with capture_logs() as lines:
        for _ in range(2):
            upload = world.upload(Condition())
            world.write(upload, first)
            upload.copy(info, 0, info.size_bytes)
            world.write(upload, last)
            upload.finish()
            assert world.client.content(KEY) == first + data + last
    assert world.client.count("copy_part") == 1
    assert len([line for line in lines if "cannot copy parts" in line["event"]]) == 1
    world.check_over()


def test_several_at_once_at_a_store_that_copies_no_parts(world: World) -> None:
    """Uploads whose first copies are all refused are all complete."""
    world.client.be_unknown()
    world.configure()
    together = threading.Barrier(3)

    def script(request: Request) -> Fault | None:
        if request.kind != "copy_part":
            return None
        together.wait(SAFE_S)
        return Fault(error=NO_COPIES[0])

    world.client.script = script
    info, data = put(world, 2 * PART)

    def copy(number: int) -> None:
        upload = world.uploads.upload(b"%d" % number)
        upload.copy(info, 0, info.size_bytes)
        world.write(upload, b"x")
        upload.finish()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(copy, range(3)))
    for number in range(3):
        assert world.client.content(b"%d" % number) == data + b"x"
    world.check_over()


@pytest.mark.parametrize("copied_before", [False, True])
def test_a_refusal_of_something_else(world: World, copied_before: bool) -> None:
    """If the store copies parts, a refusal concerns only this copy, and is no reason to read."""
    world.client.be_unknown()
    world.configure()
    info, _ = put(world, 2 * PART)
    if copied_before:
        copy_and_finish(world.uploads.upload(b"before"), info)
    error = NO_COPIES[1] if copied_before else errors.AccessDenied("no", status=403)
    world.client.inject("copy_part", Fault(error=error))
    upload = world.upload()
    with pytest.raises(errors.S3Error, match=str(error)):
        copy_and_finish(upload, info)
    assert world.client.count("get") == 0
    upload.abort()
    world.check_over()


# --- waiting, memory, the end ---


@pytest.mark.slow
def test_copies_are_made_side_by_side_and_bounded(world: World) -> None:
    """Eight parts are copied in parallel, whatever follows."""
    world.limits = Limits(PART, PART)
    world.configure()
    gate, most = threading.Event(), []
    copying = threading.Semaphore(0)

    def script(request: Request) -> Fault | None:
        if request.kind == "copy_part" and not gate.is_set():
            most.append(world.client.under_way())
            copying.release()
            gate.wait(SAFE_S)
        return None

    world.client.script = script
    info, data = put(world, 12 * PART)
    upload = world.upload()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(upload.copy, info, 0, info.size_bytes)
        for _ in range(4):  # as many as the fake client answers in parallel
            assert copying.acquire(timeout=SAFE_S)
        until(lambda: world.client.count("copy_part") == 8)
        assert not future.done()
        gate.set()
        future.result(SAFE_S)
    upload.finish()
    assert world.client.content(KEY) == data
    assert max(most) <= 8
    world.check_over()


def test_reading_stays_within_the_budget(world: World) -> None:
    """Reads wait for memory like writes."""
    world = World(world.client, limit_bytes=2 * PART)
    world.client.script = lambda request: Fault(delay_s=0.002)
    held = []
    get = world.client.get

    def noted(*args: object, **more: object) -> object:
        held.append(world.budget.held_bytes)
        return get(*args, **more)  # type: ignore[arg-type]

    world.client.get = noted  # type: ignore[assignment,method-assign]
    info, data = put(world, PART)  # too small to be copied
    upload = world.upload()
    for _ in range(4):
        upload.copy(info, 0, PART)
    upload.finish()
    assert world.client.content(KEY) == data * 4
    assert max(held) <= 2 * PART
    world.check_over()


@pytest.mark.parametrize("kind", ["get", "copy_part"])
def test_the_end_of_the_mount(world: World, kind: str) -> None:
    """The end wakes the wait for copies and reads, and leaves no parts."""
    world.client.inject(kind, *[Fault(silent=True)] * 100)
    info, _ = put(world, 1000 if kind == "get" else 2 * PART)
    upload = world.upload()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(copy_and_finish, upload, info)
        until(lambda: world.client.count(kind))
        world.uploads.interrupt()
        with pytest.raises(errors.Interrupted):
            future.result(SAFE_S)
    assert world.client.keys() == [SOURCE]
    world.check_over()


def test_writers_take_turns(world: World) -> None:
    """A write during a copy waits for its turn."""
    gate = threading.Event()

    def script(request: Request) -> Fault | None:
        if request.kind == "get":
            gate.wait(SAFE_S)
        return None

    world.client.script = script
    info, data = put(world, 1000)
    upload = world.upload()
    with ThreadPoolExecutor(2) as pool:
        copied = pool.submit(upload.copy, info, 0, 1000)
        until(lambda: world.client.count("get"))
        written = pool.submit(upload.write, 1000, b"after")
        finished = pool.submit(upload.finish)
        gate.set()
        copied.result(SAFE_S)
        with suppress(errors.NotSequential):  # `finish` came first
            written.result(SAFE_S)
    finished.result(SAFE_S)
    assert world.client.content(KEY) in (data, data + b"after")
    world.check_over()
