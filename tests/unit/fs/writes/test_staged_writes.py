"""Staged files: their requests, concurrency, and failures."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from mountpoint.errors import (
    AccessDenied,
    BadAnswer,
    BadHandle,
    Interrupted,
    NotFound,
    PreconditionFailed,
    ServerFault,
    StagingFull,
    TooLarge,
    TransportFault,
)
from tests.unit.staging_world import KEY, MIB, World, data_of

SAFE_S = 20.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world; its area ends with the test."""
    world = World(tmp_path)
    yield world
    world.stopping.set()
    world.area.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A few threads."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


# --- requests to S3 ---


def test_a_new_file_is_created_also_if_it_is_empty(world: World) -> None:
    """Each created file becomes one object, even if it is empty."""
    file = world.file()
    assert file.dirty
    assert file.sync() == world.bucket.info()
    assert world.bucket.objects == {KEY: b""}
    world.bucket.objects.clear()
    assert file.sync() is not None
    assert world.bucket.objects == {}
    assert file.close()


def test_a_file_that_was_only_read_is_not_uploaded(world: World) -> None:
    """An open for reading and writing costs nothing until the file is changed."""
    base = world.bucket.put(data_of(3 * MIB))
    file = world.file(base)
    assert file.read(MIB + 5, 10) == data_of(3 * MIB)[MIB + 5 : MIB + 15]
    assert world.bucket.fetched == [(MIB, 2 * MIB)]
    file.truncate(base.size_bytes)
    assert file.sync() is base
    assert world.bucket.sent == world.bucket.copied == []
    assert file.mtime_ns == base.mtime_ns
    assert file.close()
    assert world.names() == ["lock"]


def test_fetched_blocks_are_not_fetched_again(world: World) -> None:
    """The first read in a block fetches it."""
    file = world.file(world.bucket.put(data_of(3 * MIB)))
    for offset in range(0, 3 * MIB, 100_000):
        assert file.read(offset, 1000) == data_of(3 * MIB)[offset : offset + 1000]
    assert world.bucket.fetched == [(0, MIB), (MIB, 2 * MIB), (2 * MIB, 3 * MIB)]


def test_writing_fetches_nothing(world: World) -> None:
    """A write fetches nothing; the bytes around it are fetched when they are read."""
    data = bytearray(data_of(2 * MIB))
    file = world.file(world.bucket.put(bytes(data)))
    file.write(1000, b"some bytes")
    data[1000:1010] = b"some bytes"
    assert world.bucket.fetched == []
    assert file.read(1000, 10) == b"some bytes"
    assert world.bucket.fetched == []
    assert file.read(0, MIB) == data[:MIB]
    assert world.bucket.fetched == [(0, MIB)]


def test_a_file_that_is_written_anew_fetches_nothing(world: World) -> None:
    """A truncated and rewritten file does not fetch the old bytes."""
    file = world.file(world.bucket.put(data_of(20 * MIB)))
    file.truncate(0)
    file.write(0, b"new")
    file.truncate(5)
    assert file.read(0, 100) == b"new\0\0"
    assert file.sync() is not None
    assert world.bucket.objects[KEY] == b"new\0\0"
    assert world.bucket.fetched == world.bucket.copied == []


@pytest.mark.slow
def test_unchanged_bytes_are_copied(world: World) -> None:
    """A change in a large file fetches and sends at most 5 MiB around it."""
    data = bytearray(data_of(60 * MIB))
    file = world.file(world.bucket.put(bytes(data)))
    file.write(30 * MIB, b"x" * 4096)
    data[30 * MIB : 30 * MIB + 4096] = b"x" * 4096
    file.write(60 * MIB, b"the end")
    data += b"the end"
    assert file.sync() is not None
    assert world.bucket.objects[KEY] == data
    assert world.bucket.copied == [(0, 30 * MIB), (35 * MIB, 60 * MIB)]
    assert sum(stop - start for start, stop in world.bucket.sent) == 5 * MIB + 7
    assert sum(stop - start for start, stop in world.bucket.fetched) == 5 * MIB - 4096


def test_writing_goes_on_after_an_upload(world: World) -> None:
    """The next upload copies from the object that the last one made."""
    file = world.file()
    data = bytearray(data_of(20 * MIB))
    file.write(0, bytes(data))
    first = file.sync()
    assert file.base is first is not None
    file.write(5, b"again")
    data[5:10] = b"again"
    assert file.dirty
    second = file.sync()
    assert second not in (first, None)
    assert world.bucket.objects[KEY] == data
    assert world.bucket.copied == [(5 * MIB, 20 * MIB)]
    assert world.bucket.fetched == []
    assert file.close()
    assert world.area.used_bytes == 0


def test_a_write_beyond_the_end_leaves_zeros(world: World) -> None:
    """The gap is zeros, which take no room and are uploaded."""
    file = world.file()
    file.write(50 * MIB, b"end")
    assert world.area.used_bytes == 4096
    assert file.read(50 * MIB - 3, 10) == b"\0\0\0end"
    assert file.sync() is not None
    assert world.bucket.objects[KEY] == bytes(50 * MIB) + b"end"
    assert file.read(0, 100) == bytes(100)
    assert world.bucket.fetched == []


def test_only_one_version_is_ever_read(world: World) -> None:
    """If others have replaced the base, the read is an error, not a mixture."""
    file = world.file(world.bucket.put(data_of(2 * MIB)))
    file.read(0, 10)
    world.bucket.put(data_of(2 * MIB, 1))
    assert file.read(0, 10) == data_of(10)
    with pytest.raises(PreconditionFailed):
        file.read(MIB, 10)
    file.write(0, b"mine")
    with pytest.raises(PreconditionFailed):
        file.sync()
    assert world.bucket.objects[KEY] == data_of(2 * MIB, 1)


def test_an_answer_that_is_too_short_is_none(world: World) -> None:
    """Missing bytes of an answer do not count as zeros."""
    base = world.bucket.put(data_of(MIB))
    file = world.file(base)
    world.bucket.put(b"")
    world.bucket.objects[KEY] = data_of(MIB)[:-1]
    world.bucket.version = lambda info: world.bucket.objects[KEY]  # type: ignore[method-assign]
    with pytest.raises(BadAnswer):
        file.read(0, 10)


def test_a_file_cannot_be_larger_than_the_disk_allows(world: World) -> None:
    """EFBIG, and the file is unchanged, also on the disk."""
    file = world.file()
    file.write(0, b"abc")
    with pytest.raises(TooLarge):
        file.truncate(1 << 60)
    assert file.size_bytes == 3
    file.sync()
    assert world.bucket.objects[KEY] == b"abc"


# --- at the same time ---


def test_fetched_bytes_do_not_cover_later_writes(world: World, pool: ThreadPoolExecutor) -> None:
    """A write during a fetch does not wait, and its bytes stay."""
    fetching, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        fetching.set()
        assert go_on.wait(SAFE_S)

    world.bucket.on_fetch = wait
    file = world.file(world.bucket.put(data_of(MIB)))
    read = pool.submit(file.read, 0, 100)
    assert fetching.wait(SAFE_S)
    file.write(10, b"new bytes")
    file.truncate(500_000)
    go_on.set()
    expected = bytearray(data_of(500_000))
    expected[10:19] = b"new bytes"
    assert read.result(SAFE_S) == expected[:100]
    assert file.read(0, MIB) == expected
    assert len(world.bucket.fetched) == 1


def test_readers_of_one_block_wait_for_one_request(world: World, pool: ThreadPoolExecutor) -> None:
    """The kernel reads ahead with parallel requests: a block is fetched once."""
    fetching, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        fetching.set()
        assert go_on.wait(SAFE_S)

    world.bucket.on_fetch = wait
    file = world.file(world.bucket.put(data_of(MIB)))
    reads = [pool.submit(file.read, start, 128 << 10) for start in range(0, MIB, 128 << 10)]
    assert fetching.wait(SAFE_S)
    go_on.set()
    assert b"".join(read.result(SAFE_S) for read in reads) == data_of(MIB)
    assert world.bucket.fetched == [(0, MIB)]


def test_an_upload_is_the_file_at_one_moment(world: World, pool: ThreadPoolExecutor) -> None:
    """Writers wait until the upload has ended; readers do not."""
    sending, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        sending.set()
        assert go_on.wait(SAFE_S)

    world.bucket.on_send = wait
    file = world.file()
    file.write(0, b"before")
    upload = pool.submit(file.sync)
    assert sending.wait(SAFE_S)
    changes: list[Future[int] | Future[None]] = [
        pool.submit(file.write, 0, b"after!"),
        pool.submit(file.truncate, 6),
    ]
    assert file.read(0, 10) == b"before"
    again = pool.submit(file.sync)
    assert not changes[0].done()
    go_on.set()
    assert upload.result(SAFE_S) is not None
    for change in changes:
        change.result(SAFE_S)
    again.result(SAFE_S)
    assert file.sync() == world.bucket.info()
    assert world.bucket.objects[KEY] == b"after!"


def test_missing_bytes_are_read_from_the_uploaded_object(
    world: World, pool: ThreadPoolExecutor
) -> None:
    """A fetch is repeated if an upload replaces its base, and no reader notices."""
    data = data_of(20 * MIB)
    file = world.file(world.bucket.put(data))
    file.write(0, b"x")
    fetching, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        if world.bucket.fetched[-1][0] == 15 * MIB:
            fetching.set()
            assert go_on.wait(SAFE_S)

    world.bucket.on_fetch = wait
    read = pool.submit(file.read, 15 * MIB, 100)
    assert fetching.wait(SAFE_S)
    world.bucket.on_fetch = lambda: None
    assert file.sync() is not None
    go_on.set()
    assert read.result(SAFE_S) == data[15 * MIB : 15 * MIB + 100]


def test_late_bytes_of_an_old_version_are_dropped(world: World, pool: ThreadPoolExecutor) -> None:
    """Meanwhile the block was written, uploaded and dropped, so the late bytes are outdated."""
    fetching, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        fetching.set()
        assert go_on.wait(SAFE_S)

    file = world.file(world.bucket.put(data_of(MIB)))
    world.bucket.on_fetched = wait
    read = pool.submit(file.read, 0, 100)
    assert fetching.wait(SAFE_S)
    world.bucket.on_fetched = lambda: None
    file.write(0, data_of(MIB, 1))
    assert file.sync() is not None
    assert file.reclaim(MIB) == MIB
    go_on.set()
    assert read.result(SAFE_S) == data_of(100, 1)
    assert file.read(0, MIB) == data_of(MIB, 1)


def test_the_end_of_the_mount_ends_waiting(world: World, pool: ThreadPoolExecutor) -> None:
    """A writer that waits for an upload does not wait beyond the end of the mount."""
    sending, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        sending.set()
        assert go_on.wait(SAFE_S)

    world.bucket.on_send = wait
    file = world.file()
    file.write(0, b"before")
    upload = pool.submit(file.sync)
    assert sending.wait(SAFE_S)
    write = pool.submit(file.write, 0, b"after!")
    world.stopping.set()
    with pytest.raises(Interrupted):
        write.result(SAFE_S)
    go_on.set()
    upload.result(SAFE_S)


# --- failures ---


def test_a_failed_upload_is_kept_and_sent_by_the_next_one(world: World) -> None:
    """The error says where the file is; the next fsync or close uploads it."""
    file = world.file()
    file.write(0, b"precious")
    world.bucket.failure = ServerFault("down")
    for _ in range(2):
        with pytest.raises(ServerFault) as caught:
            file.sync()
        assert str(file._content.path) in caught.value.hint
        assert caught.value.hint.count("the written data is kept in") == 1
        assert world.bucket.aborted
        assert not file.close()
    assert file._content.path.read_bytes() == b"precious"
    described = json.loads(file._content.path.with_suffix(".json").read_text())
    assert described == {
        "bucket": "bucket",
        "key": "dir/file",
        "base_etag": None,
        "base_size": None,
        "file": file._content.path.name,
        "size": 8,
        "complete": True,
        "missing": [],
        "changed": [[0, 8]],
    }
    world.bucket.failure = None
    assert file.sync() is not None
    assert world.bucket.objects[KEY] == b"precious"
    assert file.close()
    assert world.names() == ["lock"]


def test_a_kept_file_is_made_whole_where_that_is_possible(world: World) -> None:
    """With permission to read, the kept file gets all its bytes."""
    data = bytearray(data_of(12 * MIB))
    file = world.file(world.bucket.put(bytes(data)))
    file.write(5 * MIB, b"mine")
    data[5 * MIB : 5 * MIB + 4] = b"mine"
    world.bucket.failure = AccessDenied("read only")
    with pytest.raises(AccessDenied):
        file.sync()
    assert file._content.path.read_bytes() == data
    assert json.loads(file._content.path.with_suffix(".json").read_text())["complete"]
    assert file.reclaim(MIB) == 0  # and so they stay


def test_description_of_a_kept_file_lists_missing_ranges(world: World) -> None:
    """Without S3 nothing can be fetched: the description lists the missing ranges."""
    file = world.file(world.bucket.put(data_of(12 * MIB)))
    file.write(5 * MIB, b"mine")
    world.bucket.failure = world.bucket.fetch_failure = TransportFault("no line")
    with pytest.raises(TransportFault):
        file.sync()
    described = json.loads(file._content.path.with_suffix(".json").read_text())
    assert described["missing"] == [[0, 5 * MIB], [5 * MIB + 4, 12 * MIB]]
    assert described["base_etag"] == world.bucket.info().etag
    assert not described["complete"]


def test_a_full_disk_fails_the_write_and_nothing_else(tmp_path: Path) -> None:
    """The write is ENOSPC; earlier bytes stay and can be uploaded."""
    world = World(tmp_path, limit_bytes=16 * MIB)
    file = world.file()
    data = data_of(MIB)
    for index in range(16):
        file.write(index * MIB, data)
    with pytest.raises(StagingFull):
        file.write(16 * MIB, data)
    assert file.size_bytes == 16 * MIB
    file.write(0, data)  # there is already room for it
    assert file.sync() is not None
    assert world.bucket.objects[KEY] == data * 16
    file.write(16 * MIB, data)  # uploaded bytes make room
    assert file.read(0, MIB) == data
    assert file.sync() is not None
    assert world.bucket.objects[KEY] == data * 17
    assert world.area.used_bytes <= 16 * MIB
    assert file.close()
    world.area.close()
    assert list(tmp_path.iterdir()) == []


def test_reading_needs_no_room(tmp_path: Path) -> None:
    """Without room each read fetches its bytes again."""
    world = World(tmp_path, limit_bytes=16 * MIB)
    full, other = world.file(), world.file(world.bucket.put(data_of(4 * MIB), b"other"), b"other")
    full.write(0, bytes(16 * MIB))
    for _ in range(2):
        assert other.read(MIB - 10, 20) == data_of(4 * MIB)[MIB - 10 : MIB + 10]
    assert world.bucket.fetched == [(0, 2 * MIB)] * 2
    full.truncate(0)
    assert other.read(0, 10) == other.read(0, 10) == data_of(10)
    assert len(world.bucket.fetched) == 3
    full.sync()
    assert full.close()
    assert other.close()
    world.area.close()


# --- removing and moving ---


def test_a_removed_file_is_not_uploaded(world: World) -> None:
    """A removed file can be read and written until it is closed, and leaves nothing."""
    file = world.file()
    file.write(0, b"temporary")
    file.sync()
    file.write(0, b"TEMP")
    file.unlink(lambda: world.bucket.objects.clear())
    assert file.read(0, 100) == b"TEMPorary"
    file.write(9, b" file")
    assert file.reclaim(MIB) == 0
    assert file.sync() is None
    assert not file.dirty
    assert world.bucket.objects == {}
    assert world.names() == ["000001.data", "lock"]
    assert file.close()
    assert world.names() == ["lock"]


def test_a_refused_delete_changes_nothing(world: World) -> None:
    """A refused delete changes nothing."""
    file = world.file()
    file.write(0, b"stays")

    def refuse() -> None:
        raise AccessDenied("no")

    with pytest.raises(AccessDenied):
        file.unlink(refuse)
    assert file.dirty
    assert file.sync() is not None
    assert world.bucket.objects[KEY] == b"stays"


def test_a_moved_file_is_uploaded_under_its_new_name(world: World) -> None:
    """Missing bytes come from the new place of the object; the journal knows it as well."""
    data = data_of(20 * MIB)
    file = world.file(world.bucket.put(data))
    file.write(0, b"x")

    def copy(base: object) -> object:
        world.bucket.objects[b"new"] = world.bucket.objects.pop(KEY)
        return world.bucket.info(b"new")

    file.move(b"new", copy)  # type: ignore[arg-type]
    assert file.key == b"new"
    journal = file._content.path.with_suffix(".journal")
    assert json.loads(journal.read_text().splitlines()[0])["key"] == "new"
    assert file.read(10 * MIB, 5) == data[10 * MIB : 10 * MIB + 5]
    assert file.sync() == world.bucket.info(b"new")
    assert world.bucket.objects == {b"new": b"x" + data[1:]}


def test_a_file_that_is_not_in_s3_yet_only_changes_its_name(world: World) -> None:
    """Nothing is copied."""
    file = world.file()
    file.write(0, b"abc")
    file.move(b"new", lambda base: pytest.fail("there is no base"))
    file.sync()
    assert world.bucket.objects == {b"new": b"abc"}


def test_a_base_that_was_deleted_is_not_found(world: World) -> None:
    """Bytes that were not fetched are gone with the object."""
    file = world.file(world.bucket.put(data_of(MIB)))
    world.bucket.objects.clear()
    with pytest.raises(NotFound):
        file.read(0, 10)


def test_nothing_is_done_with_a_closed_file(world: World) -> None:
    """EBADF; a second close is no error."""
    file = world.file(world.bucket.put(b"abc"))
    assert file.close()
    assert file.close()
    for call in (
        lambda: file.read(0, 1),
        lambda: file.write(0, b"x"),
        lambda: file.truncate(0),
        lambda: file.sync(),
    ):
        with pytest.raises(BadHandle):
            call()


@pytest.mark.slow
def test_many_at_once_lose_nothing(world: World, pool: ThreadPoolExecutor) -> None:
    """Writers, readers, uploads and requests for room in parallel lose nothing."""
    base = data_of(4 * MIB)
    file = world.file(world.bucket.put(base))
    stop = threading.Event()

    def write(number: int) -> int:
        for turn in range(60):
            file.write(number * MIB + turn * 5000, b"%03d/%04d" % (number, turn) * 100)
        return number

    def upload() -> None:
        while not stop.is_set():
            file.sync()

    def read() -> None:
        while not stop.is_set():
            for offset in range(0, 4 * MIB, 500_000):
                assert len(file.read(offset, 10_000)) == 10_000
            file.reclaim(MIB)

    others = [pool.submit(upload), pool.submit(read), pool.submit(read)]
    writers = [pool.submit(write, number) for number in range(4)]
    assert [each.result(SAFE_S) for each in writers] == [0, 1, 2, 3]
    stop.set()
    for other in others:
        other.result(SAFE_S)
    expected = bytearray(base)
    for number in range(4):
        for turn in range(60):
            data = b"%03d/%04d" % (number, turn) * 100
            start = number * MIB + turn * 5000
            expected[start : start + len(data)] = data
    file.sync()
    assert world.bucket.objects[KEY] == expected
    assert file.read(0, 4 * MIB) == expected
    assert file.close()
    assert world.area.used_bytes == 0
