"""Warming with a mount whose cache drops blocks, is slow, fails, or ends."""

import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from mountpoint.ctl.warm import state, warming
from mountpoint.ctl.warm.pace import Pace
from mountpoint.ctl.warm.state import CacheState, FileState, Queue, Queues, batches
from mountpoint.ctl.warm.tally import Tally, requests_of
from mountpoint.ctl.warm.warming import Warming
from mountpoint.errors import MountError
from tests.unit.ctl.warm.fake_mount import MIB, FakeMount

SIZES = {"a": 20 * MIB + 5, "b/c": 3 * MIB, "b/d": 1000, "empty": 0}


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMount:
    """A mount of files."""
    return FakeMount(tmp_path, dict(SIZES), monkeypatch)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHECK_S", "SHOW_S"):
        monkeypatch.setattr(warming, name, 0.001)
    monkeypatch.setattr(warming, "SOON_S", 0.02)
    monkeypatch.setattr(state, "RETRY_S", 0.001)


def warm(
    mount: FakeMount, paths: Iterable[str] = SIZES, *, jobs: int = 4
) -> tuple[Tally, dict[str, str]]:
    """Warm files; return the numbers, and failures by path."""
    failures: dict[str, str] = {}
    tally = Tally(failures.__setitem__)
    Warming(mount, tally, jobs=jobs).run(paths, lambda: None)
    return tally, failures


def test_all_is_read_once(mount: FakeMount) -> None:
    """Each byte that is missing is read once, and no other."""
    tally, failures = warm(mount)
    assert failures == {}
    assert (tally.files, tally.done, tally.failures) == (4, 4, 0)
    assert tally.fetched_bytes == tally.to_fetch_bytes == tally.size_bytes == sum(SIZES.values())
    assert sum(stop - start for _, start, stop in mount.reads) == sum(SIZES.values())
    tally, _ = warm(mount)
    assert (tally.done, tally.cached_bytes, tally.fetched_bytes) == (4, sum(SIZES.values()), 0)
    mount.reads.clear()
    mount.forget("a", 3)
    mount.forget("a", 20)
    warm(mount)
    assert sorted(mount.reads) == [("a", 3 * MIB, 4 * MIB), ("a", 20 * MIB, 20 * MIB + 5)]


def test_dropped_blocks_are_read_again(mount: FakeMount) -> None:
    """What the cache has dropped is read again, and nothing else."""
    mount.drops["a"] = 2
    tally, failures = warm(mount)
    assert (failures, tally.done) == ({}, 4)
    assert tally.fetched_bytes == tally.to_fetch_bytes == sum(SIZES.values()) + 2 * MIB


def test_what_is_never_kept_fails(mount: FakeMount) -> None:
    """After three times a file has failed; the others are done."""
    mount.drops["b/c"] = 1 << 30
    tally, failures = warm(mount)
    assert list(failures) == [f"{mount.directory}/b/c"]
    assert failures[f"{mount.directory}/b/c"].startswith("the cache did not keep 3.1 MB: ")
    assert len([path for path, _, _ in mount.reads if path == "b/c"]) == 3
    assert (tally.done, tally.failures) == (3, 1)


def test_queued_blocks_are_waited_for(mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """While blocks are queued, a file is not read again; not for ever."""
    mount.drops["b/d"] = 1
    mount.queued_bytes = 1000

    def write() -> None:
        time.sleep(0.05)
        mount.kept.add(("b/d", 0))

    threading.Thread(target=write).start()
    warm(mount, ["b/d"])
    assert len(mount.reads) == 1

    monkeypatch.setattr(warming, "QUEUED_S", 0.05)
    mount.drops["b/c"] = 3
    warm(mount, ["b/c"])
    assert len(mount.reads) == 3


def test_a_bucket(mount: FakeMount) -> None:
    """Without a directory, small files are fetched and sent; larger ones are no failures."""
    mount.has_directory, mount.has_bucket = False, True
    planned = Tally(lambda path, why: None)
    Warming(mount, planned, jobs=1).estimate(SIZES, lambda: None)
    assert planned.estimate() == (
        "4 files of 24 MB: 0 B in the cache, 1 kB to fetch in 1 request, "
        "1 to send to the cache bucket, 2 too large for the cache bucket"
    )
    tally, failures = warm(mount)
    assert mount.reads == [("b/d", 0, 1000)]
    assert (failures, tally.done, tally.sent, tally.too_large) == ({}, 2, 1, 2)
    assert (tally.fetched_bytes, tally.to_fetch_bytes) == (1000, 1000)
    assert tally.summary().startswith(
        "2 files in the cache, 1 kB fetched, 0 B were there, 1 sent to the cache bucket, "
        "2 too large for the cache bucket; "
    )
    tally, _ = warm(mount)
    assert (tally.done, tally.sent, tally.cached_bytes, len(mount.reads)) == (2, 0, 1000, 1)


def test_a_directory_and_a_bucket(mount: FakeMount) -> None:
    """Each cache gets what it lacks. What the directory has is read, but not fetched."""
    mount.has_bucket = True
    tally, failures = warm(mount)
    assert (failures, tally.done, tally.sent, mount.sent) == ({}, 4, 1, {"b/d"})
    assert tally.fetched_bytes == tally.to_fetch_bytes == sum(SIZES.values())
    mount.reads.clear()
    mount.sent.clear()
    tally, _ = warm(mount)
    assert mount.reads == [("b/d", 0, 1000)]
    assert (tally.sent, tally.fetched_bytes, tally.to_fetch_bytes) == (1, 0, 0)
    assert tally.cached_bytes == sum(SIZES.values())


def test_what_the_bucket_does_not_get_fails(mount: FakeMount) -> None:
    """After three times a file has failed."""
    mount.has_directory, mount.has_bucket = False, True
    mount.unsendable = True
    tally, failures = warm(mount, ["b/d"])
    assert failures == {f"{mount.directory}/b/d": warming.NOT_SENT}
    assert (len(mount.reads), tally.done, tally.sent) == (3, 0, 0)


def test_files_that_cannot_be_read(mount: FakeMount) -> None:
    """Files that are gone or shorter than they were fail, with reasons."""
    (Path(mount.directory) / "b/d").unlink()
    (Path(mount.directory) / "b/c").write_bytes(b"x")
    tally, failures = warm(mount, [*SIZES, "absent"])
    assert failures == {
        f"{mount.directory}/absent": "it does not exist",
        f"{mount.directory}/b/c": "the file has become shorter",
        f"{mount.directory}/b/d": "No such file or directory",
    }
    assert (tally.done, tally.failures) == (2, 3)
    assert tally.fetched_bytes == tally.to_fetch_bytes


def test_a_mount_that_ends(mount: FakeMount) -> None:
    """The command fails with it, whichever thread notices."""

    def paths() -> Iterable[str]:
        yield from ["a"] * 300
        mount.ended = True
        yield from ["a"] * 300

    with pytest.raises(MountError, match="has ended"):
        warm(mount, paths())


def test_ctrl_c(mount: FakeMount) -> None:
    """The threads end, and the numbers so far stay."""
    tally = Tally(lambda path, why: None)
    mount.drops.update(dict.fromkeys(SIZES, 1000))  # so that it cannot finish before

    def show() -> None:
        raise KeyboardInterrupt

    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Warming(mount, tally, jobs=2).run(SIZES, show)
    assert time.monotonic() - began_s < warming.END_S
    assert "not finished" in tally.summary()


def test_an_estimate_reads_nothing(mount: FakeMount) -> None:
    """A dry run only asks."""
    tally = Tally(lambda path, why: None)
    Warming(mount, tally, jobs=1).estimate(SIZES, lambda: None)
    assert mount.reads == []
    assert tally.estimate() == (
        "4 files of 24 MB: 0 B in the cache, 24 MB to fetch in 7 to 34 requests"
    )


def test_many_files(mount: FakeMount) -> None:
    """More files than one question has room for, answered a few at a time."""
    mount.at_most = 7
    mount.sizes |= {f"b/{n}": 0 for n in range(1000)}
    tally, failures = warm(mount, [f"b/{n}" for n in range(1000)])
    assert (tally.done, failures) == (1000, {})


# --- questions ---


def test_batches_fit_a_question() -> None:
    """Batches are limited by number and by bytes of JSON, and in order."""
    paths = [f"{n}" for n in range(1000)] + ["ä" * 4000] * 5
    found = list(batches(paths))
    assert [path for batch in found for path in batch] == paths
    assert max(map(len, found)) == state.MAX_PATHS
    assert [len(batch) for batch in found[-3:]] == [233, 2, 2]
    assert list(batches([])) == []


def test_a_cache_that_is_not_used(mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command waits for it, but not for ever."""
    stopping = threading.Event()
    mount.unusable = 3
    states, queues = CacheState(mount, stopping).of(["empty"])
    assert states == [FileState("empty", 0, [])]
    assert queues == Queues(Queue(0, 64 * MIB), Queue(0, 0))
    mount.unusable = 1 << 30
    monkeypatch.setattr(state, "UNUSABLE_S", 0.02)
    with pytest.raises(MountError, match="does not use its cache"):
        CacheState(mount, stopping).of(["empty"])
    monkeypatch.setattr(state, "UNUSABLE_S", 1e9)
    stopping.set()
    assert CacheState(mount, stopping).of(["empty"])[0] == []


# --- pace ---


def test_reads_wait_for_room() -> None:
    """Reads that the queue has no room for wait until the mount has written."""
    queue = Queue(0, 8 * MIB)
    pace = Pace(lambda: queue, threading.Event())
    assert pace.chunk_bytes == MIB
    for _ in range(4):
        with pace.reading(MIB):
            pass
    queue = Queue(4 * MIB, 8 * MIB)
    entered = threading.Event()

    def read() -> None:
        with pace.reading(MIB):
            entered.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert not entered.wait(0.1)
    queue = Queue(2 * MIB, 8 * MIB)
    assert entered.wait(5)
    thread.join()


@pytest.mark.parametrize(
    ("limit_bytes", "chunk_bytes"), [(0, MIB), (MIB, MIB), (20 * MIB, 2 * MIB), (1 << 40, 8 * MIB)]
)
def test_chunks_follow_the_limit(limit_bytes: int, chunk_bytes: int) -> None:
    """A small queue gets small reads; a read is admitted if nothing else is held."""
    pace = Pace(lambda: Queue(0, limit_bytes), threading.Event())
    assert pace.chunk_bytes == chunk_bytes
    for _ in range(10):
        with pace.reading(chunk_bytes):
            pass


def test_no_queue_admits_all() -> None:
    """A mount without that cache has no queue for it."""
    pace = Pace(lambda: Queue(0, 0), threading.Event())
    with pace.reading(MIB), pace.reading(MIB):
        pass


def test_the_end_admits_all() -> None:
    """Nobody waits once it is over."""
    stopping = threading.Event()
    pace = Pace(lambda: Queue(8 * MIB, 8 * MIB), stopping)
    with pace.reading(4 * MIB):
        pass
    stopping.set()
    with pace.reading(4 * MIB):
        pass


# --- numbers ---


@pytest.mark.parametrize(
    ("size_bytes", "missing", "requests"),
    [
        (1000, [], (0, 0)),
        (1000, [(0, 1000)], (1, 1)),
        (MIB, [(0, MIB)], (1, 1)),
        (MIB + 1, [(0, MIB + 1)], (2, 5)),
        (40 * MIB, [(0, 40 * MIB)], (6, 45)),
        (40 * MIB, [(0, MIB), (5 * MIB, 7 * MIB)], (3, 7)),
    ],
)
def test_requests(
    size_bytes: int, missing: list[tuple[int, int]], requests: tuple[int, int]
) -> None:
    """The least and the most requests that reads of ranges take."""
    assert requests_of(FileState("a", size_bytes, missing)) == requests


def test_figures() -> None:
    """Rate and time left, once all files are known; the share is never all before the end."""
    now_s = 0.0
    failed: list[tuple[str, str]] = []
    tally = Tally(lambda path, why: failed.append((path, why)), lambda: now_s)
    assert (tally.share, tally.figures()) == (0.0, "0 B of 0 B, 0 B/s, looking for files")
    tally.found(FileState("a", 10_000_000, [(0, 8_000_000)]))
    now_s = 2.0
    tally.fetched(4_000_000)
    assert tally.figures() == "4 MB of 8 MB, 2 MB/s, looking for files"
    tally.all_found = True
    assert tally.figures() == "4 MB of 8 MB, 2 MB/s, 2 s left"
    assert tally.share == 0.5
    assert tally.summary() == (
        "0 files in the cache, 4 MB fetched, 2 MB were there, not finished; 2 s, 2 MB/s"
    )
    tally.fetched(4_000_000)
    tally.settled()
    tally.fail("b", "gone")
    assert tally.share == 0.99
    assert failed == [("b", "gone")]
    assert (
        tally.summary()
        == "1 file in the cache, 8 MB fetched, 2 MB were there, 1 failed; 2 s, 4 MB/s"
    )
