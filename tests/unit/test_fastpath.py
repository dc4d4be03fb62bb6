"""Parts, their map and replies: in any order, with threads, without copies or leaks."""

import ctypes
import gc
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint._fastpath import Assembly, Part, PartMap, slice_of
from mountpoint.errors import BadAnswer, Interrupted, PreconditionFailed, Stalled, TransportFault
from mountpoint.s3.client import ObjectInfo
from tests.soak import examples

ETAG = '"e"'
INFO = ObjectInfo(b"k", 1 << 20, 0, ETAG)
#: Protection against a hang, not a measure of speed.
SAFE_S = 30.0


class FakeTransfer:
    """A request that counts its cancellations."""

    def __init__(self, part: Part | None = None) -> None:
        self.part = part
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1
        if self.part is not None:
            self.part.finish(TransportFault("cancelled"))


def deliver(part: Part, data: bytes, chunk_bytes: int = 1 << 30) -> None:
    """Deliver this part's bytes of the object `data`, as a client does."""
    part.on_headers(INFO)
    for position in range(part.start, part.stop, chunk_bytes):
        part.on_body(data[position : min(position + chunk_bytes, part.stop)], position)
    part.finish(None)


def ready_part(start: int, stop: int, data: bytes) -> Part:
    part = Part(start, stop, ETAG)
    deliver(part, data)
    assert part.ready
    return part


def address(buffer: Any) -> int:
    """Return the address of a buffer."""
    view = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(view), 0)
    try:
        return int(view.buf)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))


class _PyBuffer(ctypes.Structure):
    """Py_buffer (cpython/object.h)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def run_all(*works: Callable[[], None]) -> None:
    """Run each function in its own thread, and raise an error of any of them."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFE_S)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]], list[int]]:
    """Draw an object, its parts, and chunk sizes."""
    data = draw(st.binary(min_size=1, max_size=400))
    cuts = sorted(draw(st.sets(st.integers(1, max(len(data) - 1, 1)), max_size=6)))
    edges = [0, *(cut for cut in cuts if cut < len(data)), len(data)]
    chunks = draw(st.lists(st.integers(1, 60), min_size=len(edges), max_size=len(edges)))
    return data, list(itertools.pairwise(edges)), chunks


@settings(deadline=None)
@given(layouts(), st.randoms(use_true_random=False), st.data())
def test_any_order(
    layout: tuple[bytes, list[tuple[int, int]], list[int]], random_: Any, data: st.DataObject
) -> None:
    """Parts that arrive in any order and in any pieces give each read the right bytes."""
    content, ranges, chunks = layout
    parts = PartMap(1000)
    order = list(zip(ranges, chunks, strict=False))
    random_.shuffle(order)
    for (start, stop), _ in order:
        parts.insert(Part(start, stop, ETAG))
    assert [(part.start, part.stop) for part in parts] == ranges
    for (start, stop), chunk_bytes in order:
        (part,) = parts.covering(start, stop)
        assert not part.ready
        deliver(part, content, chunk_bytes)
        assert (part.ready, part.failed) == (True, False)
    for _ in range(5):
        offset = data.draw(st.integers(0, len(content) - 1))
        stop = data.draw(st.integers(offset + 1, len(content)))
        answer = slice_of(parts.covering(offset, stop), offset, stop)
        assert bytes(answer) == content[offset:stop]
        assert len(answer) == stop - offset


@settings(deadline=None, max_examples=examples(20))
@given(layouts(), st.randoms(use_true_random=False), st.integers(1, 4))
def test_readers_and_clients_in_threads(
    layout: tuple[bytes, list[tuple[int, int]], list[int]], random_: Any, readers: int
) -> None:
    """Readers that wait while other threads deliver get the right bytes."""
    content, ranges, chunks = layout
    parts = [Part(start, stop, ETAG) for start, stop in ranges]
    order = list(zip(parts, chunks, strict=False))
    random_.shuffle(order)
    reads = []
    for _ in range(readers):
        offset = random_.randrange(len(content))
        reads.append((offset, random_.randint(offset + 1, len(content))))

    def read(offset: int, stop: int) -> None:
        mine = [part for part in parts if part.start < stop and offset < part.stop]
        assert all(part.wait(SAFE_S) for part in mine)
        assert bytes(slice_of(mine, offset, stop)) == content[offset:stop]

    def clients() -> None:
        for part, chunk_bytes in order:
            deliver(part, content, chunk_bytes)

    run_all(*((lambda read_=each: read(*read_)) for each in reads), clients)


# --- Bodies that are wrong ---


def wrong_bodies() -> Iterator[tuple[str, list[tuple[bytes, int]]]]:
    yield "too short", [(b"0123", 10)]
    yield "nothing", []
    yield "too long", [(b"0123456789A", 10)]
    yield "too long in pieces", [(b"0123456789", 10), (b"A", 20)]
    yield "begins too late", [(b"12345678", 11)]
    yield "begins too early", [(b"x0123456789", 9)]
    yield "a gap", [(b"0123", 10), (b"56789", 15)]
    yield "twice", [(b"0123", 10), (b"0123", 10)]


@pytest.mark.parametrize(
    "pieces", [pieces for _, pieces in wrong_bodies()], ids=[name for name, _ in wrong_bodies()]
)
def test_wrong_body(pieces: list[tuple[bytes, int]]) -> None:
    """A body that is not exactly the range fails, and none of its bytes can be read."""
    part = Part(10, 20, ETAG)
    part.on_headers(INFO)
    for chunk, offset in pieces:
        part.on_body(chunk, offset)
    part.finish(None)
    assert part.failed
    assert isinstance(part.error, BadAnswer)
    with pytest.raises(ValueError, match="no ready part"):
        slice_of([part], 10, 20)


def test_wrong_version() -> None:
    """Headers with another ETag fail the part, whose bytes would be of another version."""
    part = Part(0, 4, ETAG)
    part.on_headers(ObjectInfo(b"k", 4, 0, '"other"'))
    assert part.failed
    part.on_body(b"data", 0)
    part.finish(None)
    assert isinstance(part.error, PreconditionFailed)
    assert not part.ready


def test_bytes_without_headers() -> None:
    """A body without headers, so of an unknown version, is no answer."""
    part = Part(0, 4, ETAG)
    part.on_body(b"data", 0)
    part.finish(None)
    assert isinstance(part.error, BadAnswer)
    assert not part.ready


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (1, 1), (2, 1)])
def test_no_range(start: int, stop: int) -> None:
    """An empty or negative range is a programming error."""
    with pytest.raises(ValueError, match="not a range"):
        Part(start, stop, ETAG)


# --- The end comes once ---


def test_the_first_end_counts() -> None:
    """Calls after the end have no effect."""
    ready = ready_part(0, 4, b"data")
    ready.fail(Stalled("late"))
    ready.cancel(Stalled("late"))
    ready.finish(TransportFault("late"))
    assert ready.ready
    assert ready.error is None
    failed = Part(0, 4, ETAG)
    error = TransportFault("first")
    failed.finish(error)
    failed.cancel(Stalled("second"))
    deliver(failed, b"data")
    assert failed.error is error
    assert not failed.ready


def test_the_end_comes_once_while_a_large_body_is_joined() -> None:
    """A cancel wins that comes while a large body is joined, when other threads may run."""
    size = 32 << 20
    part = Part(0, size, ETAG)
    finishing = threading.Event()

    class Watched(FakeTransfer):
        def __del__(self) -> None:
            finishing.set()

    part.attach(Watched())
    part.on_headers(INFO)
    piece = bytes(size // 4)
    for offset in range(0, size, len(piece)):
        part.on_body(piece, offset)

    def give_up() -> None:
        assert finishing.wait(SAFE_S)
        part.cancel(Stalled("given up"))

    run_all(give_up, lambda: part.finish(None))
    assert part.ready != part.failed
    assert part.failed == (part.error is not None)


@settings(deadline=None, max_examples=examples(30))
@given(st.permutations(["finish", "fail", "cancel", "body", "wait", "wait"]), st.booleans())
def test_races_end_once(order: list[str], good: bool) -> None:
    """If several threads call finish, fail and cancel, one of them decides."""
    part = Part(0, 4, ETAG)
    part.attach(FakeTransfer(part))
    part.on_headers(INFO)
    start = threading.Barrier(len(order))
    ends: list[tuple[bool, Exception | None]] = []

    def work(what: str) -> None:
        start.wait()
        match what:
            case "finish":
                part.finish(None if good else TransportFault("cut"))
            case "fail":
                part.fail(BadAnswer("nonsense"))
            case "cancel":
                part.cancel()
            case "body":
                part.on_body(b"data", 0)
            case "wait":
                assert part.wait(SAFE_S)
        ends.append((part.ready, part.error))

    run_all(*((lambda each=each: work(each)) for each in order))
    assert part.ready != part.failed
    seen = {end for end in ends if end[0] or end[1] is not None}
    assert seen == {(part.ready, part.error)}, "all who saw an end saw the same"


# --- Waiting ---


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 0.001])
def test_a_wait_ends_without_an_answer(timeout_s: float) -> None:
    """A wait returns False after its time, and the part continues."""
    part = Part(0, 4, ETAG)
    assert not part.wait(timeout_s)
    assert not part.wait_for_headers(timeout_s)
    deliver(part, b"data")
    assert part.wait(timeout_s)
    assert part.wait_for_headers(timeout_s)
    assert part.age_s() >= 0.0


@pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
def test_everyone_wakes(end: str) -> None:
    """All threads that wait for a part wake at its end, with any outcome."""
    part = Part(0, 4, ETAG)
    about_to_wait = threading.Barrier(9)
    woken = []

    def wait(*, headers: bool) -> None:
        about_to_wait.wait()
        woken.append(part.wait_for_headers(SAFE_S) if headers else part.wait(SAFE_S))

    def finish() -> None:
        about_to_wait.wait()
        assert not part.wait(0.01)  # let the threads start to wait
        match end:
            case "finish":
                deliver(part, b"data")
            case "fail":
                part.fail(BadAnswer("nonsense"))
            case _:
                part.cancel()

    run_all(
        *((lambda headers=bool(index % 2): wait(headers=headers)) for index in range(8)), finish
    )
    assert woken == [True] * 8


def test_headers_wake_only_threads_that_wait_for_them() -> None:
    """The headers come before the body: `info` is known while the part continues."""
    part = Part(0, 4, ETAG)
    run_all(lambda: part.on_headers(INFO), lambda: _check(part.wait_for_headers(SAFE_S)))
    assert part.info is INFO
    assert not part.wait(0.0)
    assert not part.ready
    assert not part.failed


def _check(value: bool) -> None:
    assert value


# --- The request ---


def test_cancel_stops_the_request() -> None:
    """Cancelling a part in flight cancels its request, once."""
    part = Part(0, 4, ETAG)
    transfer = FakeTransfer(part)
    part.attach(transfer)
    part.cancel()
    part.cancel()
    assert transfer.cancelled == 1
    assert isinstance(part.error, Interrupted)


def test_attach_after_failure_cancels() -> None:
    """If a part fails before its request is known, the request is cancelled later."""
    part = Part(0, 4, ETAG)
    part.cancel(Stalled("given up"))
    transfer = FakeTransfer(part)
    part.attach(transfer)
    assert transfer.cancelled == 1


def test_nothing_is_kept_after_the_end() -> None:
    """After the end the part does not refer to the request, although the request refers to it."""
    for finish_first in (False, True):
        part = Part(0, 4, ETAG)
        transfer = FakeTransfer(part)
        gone = weakref.ref(transfer)
        gc.disable()  # reference counts alone must free them
        try:
            if finish_first:
                deliver(part, b"data")
                part.attach(transfer)
            else:
                part.attach(transfer)
                deliver(part, b"data")
            del transfer
            assert gone() is None
        finally:
            gc.enable()
        assert part.ready


def test_a_failed_part_holds_no_body() -> None:
    """The body is freed when its part fails, or with the part if that is ready."""
    chunk = bytes(100)
    before = sys.getrefcount(chunk)
    failed = Part(0, 200, ETAG)
    failed.on_headers(INFO)
    failed.on_body(chunk, 0)
    failed.on_body(chunk, 100)
    assert sys.getrefcount(chunk) > before
    failed.fail(BadAnswer("nonsense"))
    assert sys.getrefcount(chunk) == before
    ready = Part(0, 100, ETAG)
    ready.on_headers(INFO)
    ready.on_body(chunk, 0)
    ready.finish(None)
    assert sys.getrefcount(chunk) == before + 1
    del ready
    assert sys.getrefcount(chunk) == before


# --- A second request for the same bytes ---


def pair() -> tuple[Part, Part, FakeTransfer, FakeTransfer]:
    """Return a part, its second request, and the transfers of both."""
    first, second = Part(10, 14, ETAG), Part(10, 14, ETAG)
    second.serve(first)
    transfers = FakeTransfer(first), FakeTransfer(second)
    first.attach(transfers[0])
    second.attach(transfers[1])
    return first, second, *transfers


WHOLE = b"0123456789data"


@pytest.mark.parametrize("begun", [False, True])
def test_the_second_is_faster(begun: bool) -> None:
    """The first part gets the second's bytes immediately, and its own request is cancelled."""
    first, second, slow, fast = pair()
    if begun:
        first.on_headers(INFO)
        first.on_body(b"x", 10)
        first.on_body(b"y", 11)
    deliver(second, WHOLE, 3)
    assert first.ready
    assert first.overtaken
    assert first.info is INFO
    assert bytes(slice_of([first], 10, 14)) == b"data"
    assert (slow.cancelled, fast.cancelled) == (1, 0)


def test_the_first_is_faster() -> None:
    """A later second request changes nothing, and can be cancelled."""
    first, second, slow, fast = pair()
    chunk = WHOLE[10:]
    first.on_headers(INFO)
    first.on_body(chunk, 10)
    first.finish(None)
    view = slice_of([first], 10, 14)
    deliver(second, WHOLE)
    assert not first.overtaken
    assert isinstance(view, memoryview)
    assert view.obj is chunk
    second.cancel()
    assert (slow.cancelled, fast.cancelled) == (0, 0)


@pytest.mark.parametrize("late", ["body", "finish", "failure", "cancel"])
def test_callbacks_after_a_takeover_change_nothing(late: str) -> None:
    """Later calls of the slower request do not change the bytes of the faster one."""
    first, second, slow, _ = pair()
    first.on_headers(INFO)
    first.on_body(b"xx", 10)
    deliver(second, WHOLE)
    match late:
        case "body":
            first.on_body(b"yy", 12)
            first.finish(None)
        case "finish":
            first.finish(None)
        case "failure":
            first.finish(TransportFault("reset"))
        case "cancel":
            first.cancel(Stalled("late"))
    assert first.ready
    assert first.error is None
    assert bytes(slice_of([first], 10, 14)) == b"data"
    assert slow.cancelled == 1


@pytest.mark.parametrize("how", ["error", "cut", "other version", "cancel"])
def test_a_second_request_that_fails(how: str) -> None:
    """The first request continues as if there had been no second one."""
    first, second, slow, _ = pair()
    match how:
        case "error":
            second.finish(TransportFault("reset"))
        case "cut":
            second.on_headers(INFO)
            second.on_body(b"da", 10)
            second.finish(None)
        case "other version":
            second.on_headers(ObjectInfo(b"k", 1 << 20, 0, '"other"'))
            second.on_body(b"evil", 10)
            second.finish(None)
        case "cancel":
            second.cancel()
    assert not first.wait(0.0)
    deliver(first, WHOLE)
    assert first.ready
    assert not first.overtaken
    assert slow.cancelled == 0


def test_a_first_request_that_has_failed() -> None:
    """A failed part stays failed: its waiting threads have seen that already."""
    first, second, _, _ = pair()
    error = TransportFault("reset")
    first.finish(error)
    deliver(second, WHOLE)
    assert first.failed
    assert first.error is error
    assert not first.overtaken


@pytest.mark.parametrize(
    ("start", "stop", "etag"), [(0, 9, ETAG), (1, 10, ETAG), (0, 10, '"other"')]
)
def test_only_the_same_bytes_serve(start: int, stop: int, etag: str) -> None:
    """A request for another range or version is rejected as a second one."""
    with pytest.raises(ValueError, match="not the same"):
        Part(start, stop, etag).serve(Part(0, 10, ETAG))


@settings(deadline=None, max_examples=examples(30))
@given(st.permutations(["first", "second", "fail", "cancel", "wait", "wait"]))
def test_both_at_once(order: list[str]) -> None:
    """Two answers, a failure and a cancel at the same time: one end, and the right bytes."""
    first, second, _, _ = pair()
    start = threading.Barrier(len(order))

    def work(what: str) -> None:
        start.wait()
        match what:
            case "first":
                deliver(first, WHOLE, 1)
            case "second":
                deliver(second, WHOLE, 1)
            case "fail":
                second.fail(BadAnswer("nonsense"))
            case "cancel":
                second.cancel()
            case "wait":
                assert first.wait(SAFE_S)

    run_all(*((lambda each=each: work(each)) for each in order))
    assert first.ready
    assert bytes(slice_of([first], 10, 14)) == b"data"


@pytest.mark.parametrize("second_wins", [False, True])
def test_no_body_of_two_stays(second_wins: bool) -> None:
    """After both requests one body lives in the part, and none after the part is freed."""
    chunks = bytes(100), bytes(range(100))
    before = [sys.getrefcount(chunk) for chunk in chunks]
    gc.disable()  # reference counts alone must free them
    try:
        first, second = Part(0, 100, ETAG), Part(0, 100, ETAG)
        second.serve(first)
        transfers = FakeTransfer(first), FakeTransfer(second)
        gone = [weakref.ref(transfer) for transfer in transfers]
        first.attach(transfers[0])
        second.attach(transfers[1])
        del transfers
        parts = (second, first) if second_wins else (first, second)
        for part in parts:
            part.on_headers(INFO)
            part.on_body(chunks[part is second], 0)
        parts[0].finish(None)
        second.cancel()
        parts[1].finish(TransportFault("cancelled"))
        del part, parts, second
        assert [transfer() for transfer in gone] == [None, None]
        kept = [sys.getrefcount(chunk) for chunk in chunks]
        mine, others = (1, 0) if second_wins else (0, 1)
        assert (kept[mine], kept[others]) == (before[mine] + 1, before[others])
        del first
        assert [sys.getrefcount(chunk) for chunk in chunks] == before
    finally:
        gc.enable()


@pytest.mark.parametrize("claim", [Part.claim_hedge, Part.claim_note])
def test_claims(claim: Callable[[Part], bool]) -> None:
    """One of the waiting threads sends a second request, and one records the duration."""
    part = Part(0, 4, ETAG)
    claims: list[bool] = []
    run_all(*[lambda: claims.append(claim(part))] * 8)
    assert sorted(claims) == [False] * 7 + [True]


def test_claims_are_of_different_things() -> None:
    """These may be different threads."""
    part = Part(0, 4, ETAG)
    assert part.claim_hedge()
    assert part.claim_note()


@pytest.mark.parametrize("end", ["ready", "failed", "taken over"])
def test_duration(end: str) -> None:
    """The duration grows until the end and then stays; the age continues to grow."""
    first, second, _, _ = pair()
    before_s = first.duration_s()
    assert 0.0 <= before_s <= first.duration_s() <= first.age_s()
    match end:
        case "ready":
            deliver(first, WHOLE)
        case "failed":
            first.fail(BadAnswer("nonsense"))
        case _:
            deliver(second, WHOLE)
    ended_s = first.duration_s()
    assert ended_s >= before_s
    first.wait(0.0)
    first.cancel()
    assert first.duration_s() == ended_s
    assert first.age_s() >= ended_s


# --- The map, against brute force ---

RANGES = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda t: (t[0], t[0] + t[1]))


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(RANGES, max_size=20), st.lists(RANGES, max_size=10), st.data())
def test_map_against_brute_force(
    ranges: list[tuple[int, int]], questions: list[tuple[int, int]], data: st.DataObject
) -> None:
    """insert, covering, gaps and remove match a model of single bytes."""
    parts = PartMap(1000)
    owner: dict[int, Part] = {}  # for each byte
    for start, stop in ranges:
        part = Part(start, stop, ETAG)
        if any(byte in owner for byte in range(start, stop)):
            with pytest.raises(ValueError, match="overlaps"):
                parts.insert(part)
        else:
            parts.insert(part)
            owner |= dict.fromkeys(range(start, stop), part)
    kept = list(dict.fromkeys(owner[byte] for byte in sorted(owner)))
    if kept:
        victim = data.draw(st.sampled_from(kept))
        assert parts.remove(victim)
        assert not parts.remove(victim)
        kept.remove(victim)
        owner = {byte: part for byte, part in owner.items() if part is not victim}
    assert list(parts) == kept
    assert len(parts) == len(kept)
    for start, stop in questions:
        here = [owner[byte] for byte in range(start, stop) if byte in owner]
        assert parts.covering(start, stop) == list(dict.fromkeys(here))
        missing = {byte for byte in range(start, stop) if byte not in owner}
        gaps = parts.gaps(start, stop)
        assert {byte for low, high in gaps for byte in range(low, high)} == missing
        assert all(low < high for low, high in gaps)
        edges = [edge for gap in gaps for edge in gap]
        assert edges == sorted(set(edges)), "in order, and never two that touch"
    assert parts.gaps(5, 5) == []
    assert parts.clear() == kept
    assert len(parts) == 0


def test_ready_answers_from_one_known_part() -> None:
    """`ready` answers only from a single ready part that a reader has reached."""
    data = bytes(range(100))
    parts = PartMap(1000)
    first, second = Part(0, 50, ETAG), Part(50, 100, ETAG)
    parts.insert(second)
    parts.insert(first)
    assert parts.ready(0, 10) is None
    deliver(first, data)
    assert parts.ready(0, 10) is None, "no plan covers it yet"
    parts.touch(first)
    parts.touch(first)
    answer = parts.ready(3, 50)
    assert answer is not None
    assert bytes(answer) == data[3:50]
    assert parts.ready(49, 51) is None, "spans two"
    parts.touch(second)
    assert parts.ready(50, 60) is None, "has not come"
    assert parts.ready(100, 101) is None
    parts.remove(first)
    assert parts.ready(3, 10) is None


def test_hits_are_counted() -> None:
    """The map knows the end of the last hit, and the total of bytes read."""
    parts = PartMap(1000)
    part = ready_part(0, 100, bytes(100))
    parts.insert(part)
    assert (parts.hit_stop, parts.read_bytes) == (0, 0)
    assert parts.ready(0, 10) is None, "no plan covers it yet"
    assert (parts.hit_stop, parts.read_bytes) == (0, 0)
    parts.touch(part)
    parts.ready(20, 50)
    parts.ready(10, 15)
    assert (parts.hit_stop, parts.read_bytes) == (15, 35)
    assert parts.ready(90, 101) is None
    parts.note_read(1000)
    assert (parts.hit_stop, parts.read_bytes) == (15, 1035)
    parts.clear()
    assert parts.read_bytes == 1035


def test_a_view_outlives_its_part() -> None:
    """A reply in progress keeps its bytes alive after the part is dropped."""
    parts = PartMap(1000)
    part = ready_part(0, 8, b"01234567")
    parts.insert(part)
    parts.touch(part)
    view = parts.ready(2, 6)
    parts.clear()
    del part
    gc.collect()
    assert view is not None
    assert bytes(view) == b"2345"


# --- No copy ---


def test_a_view_is_the_memory_that_was_delivered() -> None:
    """A read within one part is answered from the client's own bytes object."""
    chunk = bytes(range(256))
    part = Part(1000, 1256, ETAG)
    part.on_headers(INFO)
    part.on_body(chunk, 1000)
    part.finish(None)
    parts = PartMap(1000)
    parts.insert(part)
    parts.touch(part)
    for answer in (slice_of([part], 1010, 1200), parts.ready(1010, 1200)):
        assert isinstance(answer, memoryview)
        assert answer.obj is chunk
        assert answer.readonly
        assert address(answer) == address(chunk) + 10


@settings(deadline=None)
@given(st.data())
def test_slice_of_needs_ready_parts_that_cover(data: st.DataObject) -> None:
    """A hole, an unready part, or a wrong order never gives bytes."""
    content = bytes(range(30))
    parts = [ready_part(start, start + 10, content) for start in (0, 10, 20)]
    offset = data.draw(st.integers(0, 29))
    stop = data.draw(st.integers(offset + 1, 30))
    wrong = data.draw(st.sampled_from(["hole", "pending", "failed"]))
    index = data.draw(st.integers(offset // 10, (stop - 1) // 10))
    if wrong == "hole":
        del parts[index]
    else:
        parts[index] = Part(index * 10, index * 10 + 10, ETAG)
        if wrong == "failed":
            parts[index].fail(BadAnswer("nonsense"))
    covering = [part for part in parts if part.start < stop and offset < part.stop]
    with pytest.raises(ValueError, match="no ready part"):
        slice_of(covering, offset, stop)


# --- Assemblies ---


def assemble(data: bytes) -> Assembly:
    """Return `data`, assembled from two parts."""
    half = len(data) // 2
    answer = slice_of([ready_part(0, half, data), ready_part(half, len(data), data)], 0, len(data))
    assert isinstance(answer, Assembly)
    return answer


def test_an_assembly_is_read_only() -> None:
    """A reply cannot be changed, and its buffer has exactly the requested bytes."""
    assembly = assemble(b"0123456789")
    view = memoryview(assembly)
    assert view.readonly
    assert (len(assembly), len(view)) == (10, 10)
    with pytest.raises(TypeError, match="read-only"):
        view[0] = 1
    with pytest.raises(TypeError, match="not writable"):
        ctypes.c_char.from_buffer(assembly)
    with pytest.raises(ValueError, match="not empty"):
        Assembly(0)


@pytest.mark.parametrize("size", [2, 4096, 128 * 1024, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_assemblies_of_any_size(size: int) -> None:
    """Assemblies below, at and above the pool's piece have the right bytes."""
    data = bytes(index * 7 % 251 for index in range(size))
    for _ in range(3):
        assert bytes(assemble(data)) == data


def test_memory_returns_to_the_pool() -> None:
    """The next assembly uses the memory of a finished one."""
    first = assemble(b"a" * 1000)
    where = address(first)
    del first
    second = assemble(b"b" * 5000)
    assert address(second) == where
    assert bytes(second) == b"b" * 5000


def test_memory_in_use_is_never_reused() -> None:
    """Memory is not reused while a buffer export lives, even without its assembly."""
    views = [memoryview(assemble(bytes([index]) * 3000)) for index in range(40)]
    gc.collect()
    assert len({address(view) for view in views}) == 40
    others = [assemble(b"\xff" * 3000) for _ in range(20)]
    assert {address(other) for other in others}.isdisjoint(address(view) for view in views)
    for index, view in enumerate(views):
        assert bytes(view) == bytes([index]) * 3000


def test_the_pool_in_threads() -> None:
    """Threads that create and drop assemblies in parallel never share memory."""

    def work(mark: int) -> None:
        for size in range(2, 200):
            data = bytes([mark]) * (size * 300)
            views = [memoryview(assemble(data)), memoryview(assemble(data))]
            assert all(bytes(view) == data for view in views)

    run_all(*((lambda mark=mark: work(mark)) for mark in range(6)))
