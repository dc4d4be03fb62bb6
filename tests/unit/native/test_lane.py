"""Lanes: reads over parts, parts on their way, the registry, reads at random places."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.native import _lane

READY, FAILED = 1, 2
PAGE = 4096
SIZE = 1 << 20
DATA = os.urandom(SIZE)
#: A read this close to another one may belong to a run (NEAR_BYTES).
NEAR = 4 * PAGE
#: Longer than any wait of a lane.
PARKED_S = 20.0


class Parts:
    """A lane of DATA, and the arrivals of its parts."""

    def __init__(self, probe: Any, *ranges: tuple[int, int], size: int = SIZE) -> None:
        self.probe = probe
        self.lane = probe.OwnLane(size)
        self.arrivals = {start: probe.arrival() for start, _ in ranges}
        for start, stop in ranges:
            assert probe.insert(self.lane, start, stop, self.arrivals[start])
        self.stops = dict(ranges)

    def deliver(self, *starts: int) -> None:
        """Let parts arrive."""
        for start in starts:
            block = self.probe.filled(DATA[start : self.stops[start]])
            self.probe.arrival_end(self.arrivals[start], READY, block)
            self.probe.block_release(block)

    def read(self, offset: int, size: int) -> tuple[list[int], bytes, bool]:
        pieces, data, waited = self.probe.read(self.lane, offset, size)
        return pieces, data, waited

    def close(self) -> None:
        """Release everything; nothing else may refer to the arrivals once the lane is gone."""
        self.probe.clear(self.lane)
        for each in self.arrivals.values():
            assert self.probe.arrival_refs(each) == 1
            self.probe.arrival_release(each)


@contextmanager
def lane_of(probe: Any, *ranges: tuple[int, int], size: int = SIZE) -> Iterator[Parts]:
    parts = Parts(probe, *ranges, size=size)
    try:
        yield parts
    finally:
        parts.close()


def soon(work: Callable[[], object]) -> None:
    """Do it in another thread, once this one is likely to wait."""

    def later() -> None:
        time.sleep(0.02)
        work()

    threading.Thread(target=later).start()


@pytest.mark.parametrize(
    ("offset", "size", "pieces"),
    [
        (0, 10, [10]),
        (90, 10, [10]),
        (90, 20, [10, 10]),
        (0, 200, [100, 100]),
        (150, 50, [50]),
        (150, 51, []),  # a gap
        (199, 1, [1]),
        (200, 1, []),
        (90, 120, []),  # more than two parts, with a gap
        (300, 100, [50]),  # the end of the object
        (349, 1, [1]),
        (350, 10, []),  # behind it
        (0, 0, []),
    ],
)
def test_reads(probe: Any, offset: int, size: int, pieces: list[int]) -> None:
    """A read over one or two parts that are here gets exactly its bytes; others are Python's."""
    with lane_of(probe, (0, 100), (100, 200), (300, 350), size=350) as parts:
        parts.deliver(0, 100, 300)
        assert parts.read(offset, size) == (pieces, DATA[offset : offset + sum(pieces)], False)


def test_three_parts(probe: Any) -> None:
    """A read over three parts is Python's, and gives the blocks of the first two back."""
    with lane_of(probe, (0, 10), (10, 20), (20, 30)) as parts:
        parts.deliver(0, 10, 20)
        assert parts.read(5, 20) == ([], b"", False)
        assert parts.read(5, 15) == ([5, 10], DATA[5:20], False)


def test_order_and_overlap(probe: Any) -> None:
    """Parts may come in any order; one that overlaps another one is refused."""
    with lane_of(probe, (200, 300), (0, 100), (100, 200)) as parts:
        spare = probe.arrival()
        for start, stop in [(0, 100), (50, 60), (250, 400), (299, 301), (0, 1000)]:
            assert not probe.insert(parts.lane, start, stop, spare)
        assert probe.arrival_refs(spare) == 1
        assert probe.insert(parts.lane, 300, 400, spare)
        assert probe.arrival_refs(spare) == 2
        probe.remove(parts.lane, 300)
        probe.remove(parts.lane, 300)
        probe.remove(parts.lane, 50)  # no part begins there
        assert probe.arrival_refs(spare) == 1
        probe.arrival_release(spare)
        parts.deliver(0, 100, 200)
        assert parts.read(90, 100) == ([10, 90], DATA[90:190], False)


def test_without_a_block(probe: Any) -> None:
    """A part whose bytes Python has, and one that failed, are Python's at once."""
    with lane_of(probe, (0, 100), (100, 200)) as parts:
        probe.arrival_end(parts.arrivals[0], READY)
        probe.arrival_end(parts.arrivals[100], FAILED)
        assert parts.read(0, 10) == ([], b"", False)
        assert parts.read(100, 10) == ([], b"", False)


#: On a busy machine the end may come before the read that should wait for it.
TRIES = 50


@pytest.mark.parametrize("offset", [100, 95])
def test_parked_until_it_arrives(probe: Any, offset: int) -> None:
    """A read waits for a part that is on its way."""
    for _ in range(TRIES):
        with lane_of(probe, (0, 100), (100, 200)) as parts:
            parts.deliver(0)
            soon(partial(parts.deliver, 100))
            pieces, data, waited = parts.read(offset, 20)
            assert (sum(pieces), data) == (20, DATA[offset : offset + 20])
            assert probe.take_waits(parts.lane) == waited
            assert probe.take_waits(parts.lane) == 0
        if waited:
            return
    pytest.fail("no read has waited")


@pytest.mark.parametrize("how", ["fail", "doubt"])
def test_parked_until_python_must_answer(probe: Any, how: str) -> None:
    """A read whose part fails, or is in doubt, goes to Python at once."""
    end = probe.arrival_doubt if how == "doubt" else (lambda it: probe.arrival_end(it, FAILED))
    for _ in range(TRIES):
        with lane_of(probe, (0, 100), (100, 200)) as parts:
            parts.deliver(0)
            soon(partial(end, parts.arrivals[100]))
            begun_s = time.monotonic()
            pieces, data, waited = parts.read(95, 20)
            assert (pieces, data) == ([], b"")
            assert time.monotonic() - begun_s < 1.5, "it waited longer than for the end"
            assert parts.read(95, 20) == ([], b"", False)
        if waited:
            return
    pytest.fail("no read has waited")


def test_cleared_while_parked(probe: Any) -> None:
    """The lane may lose all its parts, and the last other reference, while a read waits."""
    parts = Parts(probe, (0, 100))
    answers: list[tuple[list[int], bytes, bool]] = []
    waiting = threading.Thread(target=lambda: answers.append(parts.read(0, 50)))
    waiting.start()
    time.sleep(0.02)
    probe.clear(parts.lane)
    parts.deliver(0)
    waiting.join()
    assert answers == [([50], DATA[:50], True)]
    parts.close()


def test_totals(probe: Any) -> None:
    """The lane counts the reads that it answers."""
    with lane_of(probe, (0, 100), (100, 200)) as parts:
        parts.deliver(0, 100)
        parts.read(10, 20)
        parts.read(90, 20)
        parts.read(500, 20)
        assert probe.totals(parts.lane) == (110, 40)


# --- The registry ---


def test_registry(probe: Any) -> None:
    """A handle finds its lane until it is unregistered, also where handles share a bucket."""
    before = _lane.registered()
    lanes = {handle: probe.OwnLane(1) for handle in (7, 7 + 1024, 7 + 2048)}
    for handle, lane in lanes.items():
        lane.register(handle)
    assert _lane.registered() == before + 3
    for handle, lane in lanes.items():
        found, own = probe.lane_named(handle), probe.lane_of(lane)
        assert found == own
        assert probe.lane_refs(found) == 4  # the object's, the registry's, and these two
        probe.lane_drop(found)
        probe.lane_drop(own)
    assert probe.lane_named(8) == 0
    _lane.unregister(7 + 1024)
    _lane.unregister(7 + 1024)
    assert probe.lane_named(7 + 1024) == 0
    for handle in lanes:
        _lane.unregister(handle)
    assert _lane.registered() == before


def test_registry_keeps_the_lane(probe: Any) -> None:
    """The lane of a registered handle lives on when its object is gone."""
    lane = probe.OwnLane(SIZE)
    arrival = probe.arrival()
    probe.insert(lane, 0, 100, arrival)
    lane.register(99)
    found = probe.lane_named(99)
    del lane
    assert probe.lane_refs(found) == 2
    assert probe.arrival_refs(arrival) == 2
    _lane.unregister(99)
    assert probe.lane_refs(found) == 1
    probe.lane_drop(found)
    assert probe.arrival_refs(arrival) == 1
    probe.arrival_release(arrival)


# --- Reads at random places ---


class Fetches:
    """A source of DATA that records its calls. `late`: it returns nothing."""

    def __init__(self, probe: Any) -> None:
        self.probe = probe
        self.ranges: list[tuple[int, int]] = []
        self.late = False
        self.during: Callable[[], object] = lambda: None

    def __call__(self, start: int, stop: int, thread: int, timeout_s: float) -> int:
        self.ranges.append((start, stop))
        self.during()
        if self.late:
            return 0
        block: int = self.probe.filled(DATA[start:stop])
        return block


#: The last reads of a program that reads at random places.
RECENT = [(10 * NEAR, 10 * NEAR + PAGE), (3 * NEAR, 3 * NEAR + PAGE), (30 * NEAR, 30 * NEAR + PAGE)]


class RandomLane(Parts):
    """A lane that may fetch."""

    def __init__(self, probe: Any, *, reads: int = 100, for_s: float = 60.0, size: int = SIZE):
        super().__init__(probe, size=size)
        self.fetches = Fetches(probe)
        self.lane.allow_random(probe.Source(self.fetches), RECENT, reads, for_s, 1.0)

    def fetched(self, offset: int, size: int = 100) -> bool:
        """Read; return whether the lane fetched the bytes, which must be right."""
        before = len(self.fetches.ranges)
        pieces, data, _ = self.read(offset, size)
        asked = self.fetches.ranges[before:]
        assert bool(pieces) == bool(asked and not self.fetches.late)
        if pieces:
            assert data == DATA[offset : offset + size]
            assert pieces == [len(data)]
        for start, stop in asked:
            assert start <= offset
            assert min(offset + size, SIZE) <= stop
            assert start % PAGE == 0
            assert stop % PAGE == 0 or stop == SIZE
        return bool(asked)


def test_random_read(probe: Any) -> None:
    """A read far from others is fetched, in whole pages; the next read there is not random."""
    it = RandomLane(probe)
    assert it.fetched(20 * NEAR + 5)
    assert it.fetches.ranges == [(20 * NEAR, 20 * NEAR + PAGE)]
    assert not it.fetched(20 * NEAR + 5)
    assert it.fetched(50 * NEAR - 1, 2)
    assert it.fetches.ranges[-1] == (50 * NEAR - PAGE, 50 * NEAR + PAGE)
    assert it.fetched(SIZE - 10, 100)
    assert it.fetches.ranges[-1] == (SIZE - PAGE, SIZE)
    it.close()


@pytest.mark.parametrize("distance", [-PAGE, -1, 0, PAGE, 2 * PAGE])
def test_near_others(probe: Any, distance: int) -> None:
    """A read near a recent one may belong to a run: it is Python's."""
    it = RandomLane(probe)
    assert not it.fetched(10 * NEAR + distance)
    it.close()


@pytest.mark.parametrize(("distance", "fetched"), [(NEAR, True), (NEAR - 1, False)])
def test_just_far_enough(probe: Any, distance: int, fetched: bool) -> None:
    it = RandomLane(probe)
    assert it.fetched(10 * NEAR + PAGE + distance) == fetched
    assert it.fetched(10 * NEAR - distance - 100) == fetched
    it.close()


def test_stride(probe: Any) -> None:
    """A read at the same distance as the last two is no random read: it is Python's."""
    it = RandomLane(probe)
    first, second = RECENT[-2][0], RECENT[-1][0]
    assert not it.fetched(second + (second - first))
    assert it.fetched(second + (second - first) + PAGE)
    it.close()


def test_number_of_reads(probe: Any) -> None:
    """Python looks after so many reads."""
    it = RandomLane(probe, reads=2)
    assert [it.fetched(place * NEAR) for place in (45, 58, 50, 40)] == [True, True, False, False]
    it.close()


def test_time_of_reads(probe: Any) -> None:
    """Python looks after so many seconds."""
    it = RandomLane(probe, for_s=0.0)
    assert not it.fetched(45 * NEAR)
    it.close()


def test_parts_come_first(probe: Any) -> None:
    """A read that a part covers, even partly, fetches nothing."""
    it = RandomLane(probe)
    arrival = probe.arrival()
    probe.insert(it.lane, 45 * NEAR, 45 * NEAR + PAGE, arrival)
    probe.arrival_end(arrival, FAILED)
    assert not it.fetched(45 * NEAR)
    assert not it.fetched(45 * NEAR - 10)
    probe.clear(it.lane)
    probe.arrival_release(arrival)
    it.close()


def test_late_source(probe: Any) -> None:
    """A fetch without bytes sends this read to Python, and all later ones."""
    it = RandomLane(probe)
    it.fetches.late = True
    assert it.fetched(45 * NEAR)
    it.fetches.late = False
    assert not it.fetched(58 * NEAR)
    it.close()


def test_take_random(probe: Any) -> None:
    """Python learns of the reads that were fetched, once, and takes the source away."""
    it = RandomLane(probe)
    for place in (45, 58, 50):
        assert it.fetched(place * NEAR, PAGE)
    taken = it.lane.take_random()
    assert [(start, stop) for start, stop, _ in taken] == [
        (place * NEAR, place * NEAR + PAGE) for place in (45, 58, 50)
    ]
    assert all(duration_s > 0 for _, _, duration_s in taken)
    assert it.lane.take_random() == []
    assert not it.fetched(20 * NEAR)
    assert probe.sources() == 0
    it.close()


def test_taken_during_a_fetch(probe: Any) -> None:
    """The source may be taken away, or replaced, while a read fetches from it."""
    it = RandomLane(probe)
    taken: list[Any] = []
    it.fetches.during = lambda: taken.extend(it.lane.take_random())
    assert it.fetched(45 * NEAR)
    assert taken == [(45 * NEAR, 45 * NEAR + 100, 0.0)]
    other = Fetches(probe)
    it.lane.allow_random(probe.Source(it.fetches), RECENT, 5, 60.0, 1.0)
    it.fetches.during = lambda: it.lane.allow_random(probe.Source(other), RECENT, 5, 60.0, 1.0)
    assert it.fetched(45 * NEAR)
    it.read(45 * NEAR, 10)
    assert other.ranges == [(45 * NEAR, 45 * NEAR + PAGE)]
    it.close()


def test_more_reads_than_are_remembered(probe: Any) -> None:
    """Of more reads than the ring holds, Python learns the last ones."""
    size = 1 << 40
    it = RandomLane(probe, size=size)
    places = [(1000 + number * number) * NEAR for number in range(1, 101)]
    source = probe.Source(lambda start, stop, thread, timeout_s: probe.block(stop - start))
    it.lane.allow_random(source, RECENT, 200, 60.0, 1.0)
    del source
    assert all(probe.read(it.lane, place, 10)[0] == [10] for place in places)
    assert [start for start, _, _ in it.lane.take_random()] == places[-64:]
    it.close()


@given(st.data())
def test_any_parts(probe: Any, data: st.DataObject) -> None:
    """Over any parts, in any states, a read gets exactly its bytes, or goes to Python."""
    cuts = sorted(data.draw(st.sets(st.integers(0, 300), min_size=2, max_size=8)))
    ranges = list(itertools.pairwise(cuts))
    states = data.draw(st.lists(st.sampled_from("rrrfdp."), min_size=7, max_size=7))
    held = [(each, state) for each, state in zip(ranges, states, strict=False) if state != "."]
    with lane_of(probe, *(each for each, _ in held), size=300) as parts:
        for (start, _), state in held:
            if state == "r":
                parts.deliver(start)
            elif state == "f":
                probe.arrival_end(parts.arrivals[start], FAILED)
            elif state == "d":
                probe.arrival_doubt(parts.arrivals[start])
            elif state == "p":
                probe.arrival_end(parts.arrivals[start], READY)
        for _ in range(5):
            offset = data.draw(st.integers(0, 320))
            size = data.draw(st.integers(0, 200))
            stop = min(offset + size, 300)
            needed = [state for (a, b), state in held if a < stop and offset < b]
            covered = sum(max(0, min(b, stop) - max(a, offset)) for (a, b), _ in held)
            here = offset < stop and covered == stop - offset and needed.count("r") == len(needed)
            pieces, answer, waited = parts.read(offset, size)
            assert not waited
            assert bool(pieces) == (here and len(needed) <= 2)
            if pieces:
                assert answer == DATA[offset:stop]


# --- A source that has the whole object ---


@contextmanager
def whole_lane(probe: Any) -> Iterator[tuple[Parts, Fetches]]:
    """A lane without parts, and the source of all its reads."""
    with lane_of(probe, size=1000) as parts:
        fetches = Fetches(probe)
        parts.lane.allow_whole(probe.Source(fetches))
        yield parts, fetches


def test_all_reads_from_one_source(probe: Any) -> None:
    """Each read is one call for exactly its bytes, also near others and at the object's end."""
    with whole_lane(probe) as (parts, fetches):
        for offset, size in [(0, 100), (100, 100), (100, 100), (900, 200), (999, 1)]:
            stop = min(offset + size, 1000)
            assert parts.read(offset, size) == ([stop - offset], DATA[offset:stop], False)
            assert fetches.ranges.pop() == (offset, stop)
            assert bytes(parts.lane.read_whole(offset, stop)) == DATA[offset:stop]
            assert fetches.ranges.pop() == (offset, stop)
        assert parts.read(1000, 10) == ([], b"", False)
        for wrong in [(1000, 1010), (5, 5), (-1, 5), (900, 1001)]:
            assert parts.lane.read_whole(*wrong) is None
        assert fetches.ranges == []


def test_a_part_ends_the_reads_from_the_source(probe: Any) -> None:
    """Once a part is there, reads are those of parts: Python has asked S3."""
    with whole_lane(probe) as (parts, fetches):
        parts.arrivals[0], parts.stops[0] = probe.arrival(), 500
        assert probe.insert(parts.lane, 0, 500, parts.arrivals[0])
        parts.deliver(0)
        assert parts.read(10, 20) == ([20], DATA[10:30], False)
        assert parts.read(600, 20) == ([], b"", False)
        assert parts.lane.read_whole(600, 620) is None
        assert fetches.ranges == []


def test_a_source_that_fails_is_dropped(probe: Any) -> None:
    """The read whose bytes the source lacks is Python's, and so are all later ones."""
    with whole_lane(probe) as (parts, fetches):
        fetches.late = True
        assert parts.read(10, 20) == ([], b"", False)
        fetches.late = False
        assert parts.read(10, 20) == ([], b"", False)
        assert parts.lane.read_whole(10, 30) is None
        assert fetches.ranges == [(10, 30)]


def test_a_source_that_is_dropped_during_a_read(probe: Any) -> None:
    """A read in progress has its bytes; another one may have dropped the source meanwhile."""
    with whole_lane(probe) as (parts, fetches):

        def fail() -> None:
            fetches.during, fetches.late = (lambda: None), True
            assert parts.lane.read_whole(0, 1) is None
            fetches.late = False

        fetches.during = fail
        assert parts.read(10, 20) == ([20], DATA[10:30], False)
        assert parts.read(10, 20) == ([], b"", False)
