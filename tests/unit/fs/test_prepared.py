"""Files that are prepared for an open without the interpreter: which, for how long, and that their
handles are like all others.
"""

import functools
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mountpoint.errors import BadHandle, OperationError, PreconditionFailed, Superseded
from mountpoint.fs import prepared
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import InodeNumber
from mountpoint.fs.prepared import BATCH_FILES, LATE_S, LOOKUPS, MAX_CREDIT
from mountpoint.fs.session.log import SessionLog, new_log
from mountpoint.fuse.operations import Operations
from mountpoint.native._handles import FIRST_HANDLE
from mountpoint.native._lane import LaneSource, registered
from mountpoint.staging.area import StagingArea
from tests.unit.fake_client import SAFE_S, FakeClient
from tests.unit.mounted import Mounted, mounted
from tests.unit.native import building

FILES = 40
SIZE = 50_000
TTL_S = 300.0
OPTIONS = {
    "ttl_s": TTL_S,
    "asks_on_open": False,
    "allow_overwrite": True,
    "allow_delete": True,
    "allow_append": True,
}


def content(number: int) -> bytes:
    """Return the bytes of a file."""
    return b"%d." % number * (SIZE // len(b"%d." % number))


OBJECTS = {b"d/%02d" % number: content(number) for number in range(FILES)} | {
    b"d/large": bytes(300_000),
    b"d/missing": b"not in the cache",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache that has all files but one."""
    path = str(tmp_path_factory.mktemp("cache"))
    with mounted(OBJECTS, cache=path, **OPTIONS) as world:
        for name in OBJECTS:
            if name != b"d/missing":
                world.read_file(world.look(name).inode)
        assert world.cache is not None
        assert world.cache.wait(SAFE_S)
    return path


@pytest.fixture
def world(cache: str) -> Iterator[Mounted]:
    """A mount whose kernel knows all files, and that has opened one of them."""
    with mounted(OBJECTS, cache=cache, **OPTIONS) as it:
        prepare(it)
        yield it


def inodes(world: Mounted) -> list[InodeNumber]:
    """Look up the files of the directory, in the order of their names."""
    directory = world.look(b"d").inode
    return [world.fs.lookup(directory, b"%02d" % number).inode for number in range(FILES)]


def prepare(world: Mounted) -> None:
    """Read the first file, and prepare all that follow."""
    directory = world.look(b"d").inode
    world.names(directory)
    for name in (b"large", b"missing"):
        world.fs.lookup(directory, name)
    first, *_ = inodes(world)
    world.read_file(first)
    world.client.requests.clear()
    step(world)


def step(world: Mounted) -> None:
    """Do all that the thread would do by now."""
    preparer = world.fs.preparer
    preparer.step([InodeNumber(each) for each in world.prepared.wait(0.0)])
    while preparer.is_preparing:
        preparer.step([])


def opened(world: Mounted, inode: InodeNumber, request: int = 0) -> HandleNumber:
    """Open a file without the interpreter; 0 if that is not possible."""
    return HandleNumber(world.prepared.open(inode, request, world.clock.now_s))


def can_open(world: Mounted, inode: InodeNumber) -> bool:
    handle = opened(world, inode)
    return handle > 0 and world.prepared.handles.close(handle)


# --- which files ---


def test_the_files_that_follow(world: Mounted) -> None:
    """Small files that the cache has are opened without a request, and read; no others.

    The file that Python has opened is prepared for the next time.
    """
    for number, inode in enumerate(inodes(world)):
        handle = opened(world, inode)
        assert handle >= FIRST_HANDLE, number
        assert bytes(world.fs.read(handle, 0, 1 << 20)) == content(number)
        assert world.prepared.handles.close(handle)
    for name in (b"d/large", b"d/missing"):
        assert not can_open(world, world.look(name).inode)
    assert world.client.requests == []
    files = [*range(FILES), 0]
    assert world.counters.snapshot()["bytes_read"] == sum(len(content(each)) for each in files)


def test_only_what_the_kernel_knows(cache: str) -> None:
    """A file that was not looked up is not prepared, besides the one that was opened."""
    with mounted(OBJECTS, cache=cache, **OPTIONS) as world:
        world.names(world.look(b"d").inode)
        world.read_file(world.look(b"d/00").inode)
        step(world)
        assert len(world.prepared) == 1


@pytest.mark.parametrize("options", [{"asks_on_open": True}, {"ttl_s": 0.0}])
def test_files_of_which_s3_is_asked(cache: str, options: dict[str, Any]) -> None:
    """Where an open asks S3, nothing is prepared from the cache."""
    with mounted(OBJECTS, cache=cache, **OPTIONS | options) as world:
        prepare(world)
        assert not any(can_open(world, each) for each in inodes(world))


def test_the_time(world: Mounted) -> None:
    """A file is opened as long as its version may be believed."""
    _, second, *_ = inodes(world)
    world.pass_s(TTL_S - 1)
    assert can_open(world, second)
    world.pass_s(2)
    assert not can_open(world, second)


def test_the_cache_is_not_used(world: Mounted) -> None:
    """If the disk fails, files are opened by Python, which asks S3 for their bytes."""
    assert world.cache is not None
    _, second, *_ = inodes(world)
    world.cache._health.failed(5)
    assert not can_open(world, second)


def test_the_credit(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many are prepared that nobody opens; more when they are opened, or time passes."""
    monkeypatch.setattr(prepared, "MAX_CREDIT", 2.0 * BATCH_FILES)
    with mounted(OBJECTS, cache=cache, **OPTIONS) as world:
        prepare(world)
        assert len(world.prepared) == BATCH_FILES + 1
        for inode in inodes(world):
            can_open(world, inode)
        world.prepared.wake(inodes(world)[BATCH_FILES])
        step(world)
        assert len(world.prepared) == FILES
    assert MAX_CREDIT > FILES


def test_the_disk_reads_ahead_in_order(world: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first file of a batch is opened, the disk begins to read the next batch."""
    expected: list[int] = []
    monkeypatch.setattr(prepared, "expect_all", lambda sources: expected.append(len(sources)))
    for _ in range(2):  # so it does for a file that is opened again
        for inode in inodes(world)[: BATCH_FILES + 2]:
            can_open(world, inode)
            step(world)
    assert expected == [BATCH_FILES, FILES - 1 - 2 * BATCH_FILES] * 2


def test_the_disk_does_not_read_ahead_out_of_order(
    world: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another order it does not."""
    monkeypatch.setattr(prepared, "expect_all", lambda sources: pytest.fail("it reads ahead"))
    can_open(world, inodes(world)[BATCH_FILES + 1])
    step(world)


# --- changes ---


def change_by_create(world: Mounted) -> None:
    world.write_file(b"new", b"1")


def change_by_refresh(world: Mounted) -> None:
    world.fs.refresh(b"d/07")


def change_by_unlink(world: Mounted) -> None:
    world.fs.unlink(world.look(b"d").inode, b"07")


def change_by_listing(world: Mounted) -> None:
    world.client.put(b"d/07", b"other")
    world.fs.releasedir(world.fs.opendir(world.look(b"d").inode))
    world.names(world.look(b"d").inode)


def change_by_listing_what_is_left(world: Mounted) -> None:
    """List the directory after another client has deleted a file."""
    world.client.delete(b"d/07")
    world.names(world.look(b"d").inode)


def change_by_open(world: Mounted) -> None:
    handle = world.fs.open(world.look(b"d/07").inode, os.O_WRONLY | os.O_TRUNC)
    world.close(handle)


def change_by_reading(world: Mounted) -> None:
    """Find that the object was replaced."""
    inode = world.fs._inodes.get(world.look(b"d/07").inode)
    world.fs._caches.disbelieve(inode)


CHANGES = [
    change_by_create,
    change_by_refresh,
    change_by_unlink,
    change_by_listing,
    change_by_listing_what_is_left,
    change_by_open,
    change_by_reading,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes(world: Mounted, change: Any) -> None:
    """After each change all files are opened by Python, which looks again."""
    known = inodes(world)
    assert can_open(world, known[7])
    change(world)
    assert not any(can_open(world, each) for each in known)


def test_an_inode_that_is_forgotten(world: Mounted) -> None:
    """What the kernel has forgotten is prepared no more: another file may get its number."""
    inode = inodes(world)[7]
    world.fs.forget(inode, 3)
    assert not can_open(world, inode)


def test_a_cache_without_the_files(tmp_path: Path) -> None:
    """A cache that has none of them is not asked without end."""
    with mounted(OBJECTS, cache=str(tmp_path), **OPTIONS) as world:
        world.names(world.look(b"d").inode)
        known = inodes(world)
        for _ in range(int(MAX_CREDIT) // BATCH_FILES):
            world.prepared.wake(known[0])
            step(world)
        assert world.fs.preparer._credit < BATCH_FILES
        assert world.cache is not None
        assert world.cache.wait(SAFE_S)


def test_batches_that_are_made_anew(world: Mounted) -> None:
    """What is known of batches does not grow."""
    preparer, first = world.fs.preparer, inodes(world)[0]
    for number in range(1000):
        preparer._remember(first, prepared.Batch(0, InodeNumber(number), first, []))
    assert len(preparer._first_after) <= len(preparer._batches) + 1


def test_the_same_listing(world: Mounted) -> None:
    """A listing that shows the same versions changes nothing."""
    known = inodes(world)
    world.names(world.look(b"d").inode)
    assert can_open(world, known[7])


@pytest.mark.parametrize("change", [change_by_open, change_by_refresh])
def test_a_change_while_files_are_prepared(
    world: Mounted, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file counts as prepared before the change, if Python has looked before it."""
    known = inodes(world)
    world.prepared.forget_all()
    whole_sources = world.streams.whole_sources

    def changed_meanwhile(infos: Any) -> Any:
        change(world)
        return whole_sources(infos)

    monkeypatch.setattr(world.streams, "whole_sources", changed_meanwhile)
    world.fs.preparer.step([known[0]])
    assert not any(can_open(world, each) for each in known)


def test_a_file_that_is_being_written(world: Mounted) -> None:
    """It is not prepared."""
    known = inodes(world)
    handle = world.fs.open(known[7], os.O_WRONLY | os.O_TRUNC)
    world.prepared.wake(known[0])
    step(world)
    assert can_open(world, known[8])
    assert not can_open(world, known[7])
    world.close(handle)


# --- handles ---


@pytest.fixture(params=["streamed", "staged"])
def writable(request: pytest.FixtureRequest, cache: str, tmp_path: Path) -> Iterator[Mounted]:
    """A mount with either kind of writes."""
    staging = None
    if request.param == "staged":
        staging = StagingArea(str(tmp_path), "bucket", None)
    with mounted(OBJECTS, cache=cache, staging=staging, **OPTIONS) as it:
        prepare(it)
        yield it
    if staging is not None:
        staging.close()


def test_a_writer_finds_the_reader(writable: Mounted) -> None:
    """A file that is open is not changed under its reader: the writer gets another inode."""
    inode = inodes(writable)[7]
    handle = opened(writable, inode)
    assert bytes(writable.fs.read(handle, 0, 10)) == content(7)[:10]
    with pytest.raises(Superseded):
        writable.fs.open(inode, os.O_WRONLY | os.O_TRUNC)
    other = writable.look(b"d/07").inode
    assert other != inode
    writing = writable.fs.open(other, os.O_WRONLY | os.O_TRUNC)
    writable.fs.write(writing, 0, b"new")
    assert bytes(writable.fs.read(handle, 10, 1 << 20)) == content(7)[10:]
    writable.close(writing)
    writable.fs.release(handle)
    assert writable.read_file(writable.look(b"d/07").inode) == b"new"
    assert writable.fs.open_files() == 0


def test_the_writer_may_come_after_the_reader(writable: Mounted) -> None:
    """Once the reader has closed the file, it is written through the same inode."""
    inode = inodes(writable)[7]
    handle = opened(writable, inode)
    assert writable.prepared.handles.close(handle)
    writing = writable.fs.open(inode, os.O_WRONLY | os.O_TRUNC)
    assert not can_open(writable, inode)
    writable.close(writing)


def test_a_handle_that_python_needs(world: Mounted) -> None:
    """Each operation of a handle works, whether Python has an object of it or not."""
    inode = inodes(world)[7]
    handle = opened(world, inode)
    assert world.fs.open_files() == 1
    assert world.fs.file(handle).inode.number == inode
    assert len(world.prepared.handles) == 0
    assert world.fs.open_files() == 1
    assert not world.prepared.handles.close(handle)
    assert bytes(world.fs.read(handle, 0, 1 << 20)) == content(7)
    world.fs.flush(handle, 1, killed=False)
    world.fs.release(handle)
    with pytest.raises(BadHandle):
        world.fs.read(handle, 0, 1)
    with pytest.raises(BadHandle):
        world.fs.release(handle)


def test_a_block_that_is_lost(world: Mounted, tmp_path: Path) -> None:
    """If the disk has lost the bytes, S3 is asked for this version of them."""
    assert world.cache is not None
    inode = inodes(world)[7]
    handle = opened(world, inode)
    info = world.fs._inodes.get(inode).info
    assert info is not None
    held = world.cache.object(info)
    assert held is not None
    held._remove()
    assert bytes(world.fs.read(handle, 0, 1 << 20)) == content(7)
    assert [each.kind for each in world.client.requests] == ["get"]
    world.fs.release(handle)
    assert world.cache.wait(SAFE_S)


def test_a_block_that_is_lost_of_an_object_that_was_replaced(world: Mounted) -> None:
    """Then the read fails: an open file is never another version."""
    assert world.cache is not None
    inode = inodes(world)[9]
    info = world.fs._inodes.get(inode).info
    handle = opened(world, inode)
    assert info is not None
    held = world.cache.object(info)
    assert held is not None
    held._remove()
    world.client.put(b"d/09", b"other")
    with pytest.raises(PreconditionFailed):
        world.fs.read(handle, 0, 10)
    world.fs.release(handle)


def test_attributes_of_an_open_file(world: Mounted) -> None:
    """An open file keeps its version: its attributes need no request, however old they are."""
    inode = inodes(world)[7]
    handle = opened(world, inode)
    world.pass_s(2 * TTL_S)
    assert world.fs.getattr(inode).size_bytes == len(content(7))
    assert world.client.requests == []
    assert world.prepared.handles.close(handle)


def test_many_threads_need_one_handle(world: Mounted) -> None:
    """A handle gets one object."""
    inode = inodes(world)[7]
    handle = opened(world, inode)
    found: list[object] = []

    def look() -> None:
        found.append(world.fs.file(handle))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    world.fs.release(handle)
    assert not world.fs._readers.are_there(world.fs._inodes.get(inode))


def test_a_close_while_a_handle_gets_its_object(
    cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The close waits for the object, and nothing of either is left."""
    log = SessionLog(new_log(), lambda new: None)
    gc.collect()  # what earlier tests have left
    before = registered()
    with mounted(OBJECTS, cache=cache, session=log, **OPTIONS) as world:
        prepare(world)
        handle = opened(world, inodes(world)[7])
        closing = threading.Thread(target=world.fs.release, args=(handle,))
        note_line = log.note_line

        def close_meanwhile(*args: Any) -> None:
            closing.start()
            note_line(*args)

        monkeypatch.setattr(log, "note_line", close_meanwhile)
        world.fs._files.adopt(handle)
        closing.join()
        assert world.fs.open_files() == 0
        assert registered() == before
        assert log.records("handle") == {}


def append(world: Mounted, name: bytes) -> None:
    """Append to a file as the kernel does: after ESTALE it looks the name up again, once."""
    inode = world.look(name).inode
    try:
        handle = world.fs.open(inode, os.O_WRONLY | os.O_APPEND)
    except Superseded:
        handle = world.fs.open(world.look(name).inode, os.O_WRONLY | os.O_APPEND)
    size_bytes = world.fs.getattr(world.fs.file(handle).inode.number).size_bytes
    world.fs.write(handle, size_bytes, b"more", appends=True)
    world.close(handle)


def test_an_append_to_a_file_that_was_read(world: Mounted) -> None:
    """The kernel has pages of a file that was read: the writer gets another inode."""
    inode = inodes(world)[7]
    handle = opened(world, inode)
    assert bytes(world.fs.read(handle, 0, 1 << 20)) == content(7)
    assert world.prepared.handles.close(handle)
    with pytest.raises(Superseded):
        world.fs.open(inode, os.O_WRONLY | os.O_APPEND)
    append(world, b"d/07")
    assert world.read_file(world.look(b"d/07").inode) == content(7) + b"more"


def test_an_append_to_a_file_that_was_only_prepared(world: Mounted) -> None:
    """It is written through its inode: the kernel has no pages."""
    inode = inodes(world)[7]
    world.close(world.fs.open(inode, os.O_WRONLY | os.O_APPEND))


def test_a_file_that_a_writer_looks_up_again(world: Mounted) -> None:
    """A writer that gets ESTALE finds an inode that nobody reads: it is not prepared meanwhile."""
    reading = opened(world, inodes(world)[7])
    assert bytes(world.fs.read(reading, 0, 10)) == content(7)[:10]
    with pytest.raises(Superseded):
        world.fs.open(inodes(world)[7], os.O_WRONLY | os.O_APPEND)
    known = inodes(world)
    world.prepared.wake(known[0])
    step(world)
    assert can_open(world, known[8])
    assert not can_open(world, known[7])
    writing = world.fs.open(known[7], os.O_WRONLY | os.O_APPEND)
    world.close(writing)
    world.fs.release(reading)


# --- another process goes on ---


def test_another_process_goes_on(cache: str) -> None:
    """What is open is known to the next process, with and without an object, and its log too."""
    published: list[int] = []
    file = new_log()
    log = SessionLog(file, lambda new: published.append(os.dup(new)))
    with mounted(OBJECTS, cache=cache, session=log, **OPTIONS) as dead:
        prepare(dead)
        known = inodes(dead)
        closed, held, adopted = (opened(dead, each, each) for each in known[5:8])
        assert dead.prepared.handles.close(closed)
        dead.fs.file(adopted)
        while not published:  # a new memfd has both, too
            if not can_open(dead, known[9]):
                dead.fs.release(dead.fs.open(known[9], os.O_RDONLY))
        live = Mounted(
            dead.client,
            dead.clock,
            {"session": SessionLog(published[-1], lambda file: None), **OPTIONS},
        )
        assert live.fs.open_files() == 2
        for number, handle in ((6, held), (7, adopted)):
            assert bytes(live.fs.read(handle, 0, 1 << 20)) == content(number)
        assert live.fs.opened_before(known[6]) is None
        assert live.fs.open_files() == 1
        live.fs.release(adopted)
        new = live.fs.open(live.look(b"d/01").inode, os.O_RDONLY)
        assert new < FIRST_HANDLE
        live.prepared.handles.number_from(0)
        assert len(live.prepared.handles) == 0


def test_a_close_that_the_log_has_no_room_for(cache: str) -> None:
    """Then Python closes the file, and nothing of it is left."""
    log = SessionLog(new_log(), lambda new: None)
    gc.collect()  # what earlier tests have left
    before = registered()
    with mounted(OBJECTS, cache=cache, session=log, **OPTIONS) as world:
        prepare(world)
        handle = opened(world, inodes(world)[7])
        log.journal.seal()
        assert not world.prepared.handles.close(handle)
        Operations(world.fs, lambda: None).release(handle)
        assert registered() == before
        assert world.fs.open_files() == 0
        assert log.records("handle") == {}


# --- small files in S3 ---


class Sources(FakeClient):
    """A client whose sources deliver what the bucket has."""

    def lane_source(self, version: Any) -> LaneSource | None:
        """See ByteSource."""
        source: LaneSource = building.probe().Source(functools.partial(self._fetch, version))
        return source

    def _fetch(self, version: Any, start: int, stop: int, thread: int, late_s: float) -> int:
        if version.key not in self.keys() or self.info(version.key).etag != version.etag:
            return 0
        block: int = building.probe().filled(self.content(version.key)[start:stop])
        return block


@pytest.fixture
def asking() -> Iterator[Mounted]:
    """A mount that asks S3 at each open, and whose programs open what they look up."""
    objects = {b"d/%03d" % number: b"%03d" % number * 100 for number in range(8 * LOOKUPS)}
    options = {"client_class": Sources, "held_bytes": 1 << 20, "allow_overwrite": True}
    with mounted(objects, ttl_s=1.0, **options) as it:
        it.fs.preparer.fetches = True
        for number in range(2 * LOOKUPS):  # until it is known how long requests take
            it.read_file(it.look(b"d/%03d" % number).inode)
        yield it


def test_a_file_that_is_looked_up(asking: Mounted) -> None:
    """Its open fetches all of it, and then it is prepared no more."""
    found = 0
    for number in range(3 * LOOKUPS, 5 * LOOKUPS):
        inode = asking.look(b"d/%03d" % number).inode
        handle = opened(asking, inode)
        if handle:
            found += 1
            assert bytes(asking.fs.read(handle, 0, 1000)) == b"%03d" % number * 100
            assert asking.prepared.handles.close(handle)
        assert not opened(asking, inode)
    assert 2 * LOOKUPS - 4 <= found < 2 * LOOKUPS  # some are left to Python, which learns


def known(world: Mounted, numbers: range) -> list[InodeNumber]:
    """Return files that the kernel has from a listing: it does not look them up."""
    world.prepared.wait(0.0)  # forget what was opened before
    world.fs.preparer.fetches = False
    found = [world.look(b"d/%03d" % number).inode for number in numbers]
    world.fs.preparer.fetches = True
    return found


def test_files_that_follow(asking: Mounted) -> None:
    """Once Python has opened a file, those that follow it are fetched by their opens."""
    files = known(asking, range(100, 101 + 3 * BATCH_FILES))
    asking.read_file(files[5])  # the kernel may have pages of it
    asking.prepared.wait(0.0)
    assert not opened(asking, files[1])
    asking.read_file(files[0])
    step(asking)
    for number in range(1, 1 + BATCH_FILES):
        handle = opened(asking, files[number])
        assert bool(handle) == (number != 5)
        assert not handle or asking.prepared.handles.close(handle)
    assert not opened(asking, files[2 * BATCH_FILES])
    step(asking)  # the first one was opened
    for number in range(1 + BATCH_FILES, 2 * BATCH_FILES):
        assert asking.prepared.handles.close(opened(asking, files[number])), number


def test_files_that_follow_while_s3_is_late(
    asking: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an open that could not fetch its file, those that follow are left to Python."""
    monkeypatch.setattr(prepared, "time", asking.clock)
    files = known(asking, range(100, 120))
    asking.read_file(files[0])
    with monkeypatch.context() as patch:
        patch.setattr(asking.client, "_fetch", lambda *_: 0)
        step(asking)
    assert not opened(asking, files[1])
    asking.prepared.forget_all()
    asking.read_file(files[2])
    step(asking)
    assert not opened(asking, files[3])
    asking.clock.now_s += LATE_S
    known(asking, range(100, 120))
    asking.prepared.wake(files[3])
    step(asking)
    assert asking.prepared.handles.close(opened(asking, files[4]))


def test_an_object_that_was_replaced(asking: Mounted) -> None:
    """An open asks S3: if there is another version, Python opens the file, and finds it."""
    inode = asking.look(b"d/100").inode
    asking.client.put(b"d/100", b"other")
    assert not opened(asking, inode)
    with pytest.raises(OperationError):
        asking.fs.open(inode, os.O_RDONLY)


def test_s3_is_late(asking: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an open that could not fetch its file Python opens some, with retries and hedges."""
    before = asking.look(b"d/100").inode
    with monkeypatch.context() as patch:
        patch.setattr(asking.client, "_fetch", lambda *_: 0)
        inode = asking.look(b"d/101").inode
    assert not opened(asking, inode)
    found = [opened(asking, asking.look(b"d/%03d" % number).inode) for number in range(102, 106)]
    assert found == [0, 0, 0, 0]
    assert asking.prepared.handles.close(opened(asking, before))


def test_the_kernel_has_pages(asking: Mounted) -> None:
    """After an open the kernel may have pages, so the next one asks only for the version."""
    inode = asking.look(b"d/100").inode
    handle = opened(asking, inode)
    assert handle
    assert asking.prepared.handles.close(handle)
    asking.client.requests.clear()
    asking.fs.release(asking.fs.open(asking.look(b"d/100").inode, os.O_RDONLY))
    assert [each.kind for each in asking.client.requests] == ["head"]


def test_a_writer_that_comes_meanwhile(asking: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file is opened for writing while it is fetched, Python opens it for the reader."""
    inode = asking.look(b"d/100").inode
    assert isinstance(asking.client, Sources)
    fetch = asking.client._fetch
    writers: list[HandleNumber] = []

    def fetch_late(*args: Any) -> int:
        writers.append(asking.fs.open(inode, os.O_WRONLY | os.O_TRUNC))
        return fetch(*args)

    monkeypatch.setattr(asking.client, "_fetch", fetch_late)
    again = asking.look(b"d/100").inode
    assert again == inode
    assert not opened(asking, inode)
    assert len(writers) == 1
    asking.close(writers[0])


def test_programs_that_only_look(asking: Mounted) -> None:
    """If programs do not open what they look up, nothing is prepared."""
    for number in range(3 * LOOKUPS):
        asking.look(b"d/%03d" % number)
    assert not opened(asking, asking.look(b"d/110").inode)
