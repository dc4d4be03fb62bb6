"""How much is in flight, and when a request is late: from durations alone."""

import random
from collections import deque

import pytest

from mountpoint.transfer import concurrency as flight
from mountpoint.transfer.concurrency import (
    BASE_PARTS,
    HEDGED_SHARE,
    JUDGED,
    JUDGED_KIN,
    KIN,
    LATE_FACTOR,
    LEAST_KIN,
    LEAST_LATE_S,
    PAUSE_TURNS,
    Flight,
    Lateness,
)

MOST = 20


def fly(flight: Flight, line: str, turns: int, *, waited: bool = True) -> list[int]:
    """Let parts arrive for some turns; return the parts in flight after each.

    "each": every connection has its own limit. "shared": all share one line. "fast": each has its
    own, and eight are all that the line is said to bring.
    """
    found = []
    for _ in range(turns):
        before = flight.parts
        for _ in range(flight.parts // 2 + JUDGED * flight.parts):
            duration_s = {"each": 0.13, "shared": 0.0125 * before, "fast": 0.02}[line]
            flight.arrived(duration_s, waited=waited)
        found.append(flight.parts)
    return found


def test_more_where_each_connection_has_its_limit() -> None:
    """As long as parts take no longer, half as many are added, up to the most."""
    assert fly(Flight(MOST), "each", 5) == [12, 18, 20, 20, 20]


def test_no_more_on_a_shared_line() -> None:
    """A try that makes all parts slower is taken back, and not made again for a while."""
    parts = fly(Flight(MOST), "shared", PAUSE_TURNS + 4)
    assert parts[:2] == [12, BASE_PARTS]
    assert set(parts[2 : PAUSE_TURNS + 1]) == {BASE_PARTS}
    assert 12 in parts[PAUSE_TURNS + 1 :]


def test_chance_adds_up_to_little() -> None:
    """On a shared line, and a busy machine, as many as fill the line are in flight, mostly."""
    random_ = random.Random(1)
    found = []
    for _ in range(20):
        flight = Flight(MOST)
        for _ in range(2000):
            usual_s = 0.002 + 0.007 * flight.parts
            flight.arrived(usual_s * random_.lognormvariate(0.0, 0.3), waited=True)
            found.append(flight.parts)
    assert sum(found) / len(found) < 9.5


def test_no_more_than_the_line_brings() -> None:
    """Where eight parts bring what the line can, nothing is tried, although readers wait."""
    assert set(fly(Flight(MOST), "fast", 10)) == {BASE_PARTS}


def test_nobody_waits() -> None:
    """Where readers are the slower ones nothing is tried."""
    assert set(fly(Flight(MOST), "each", 10, waited=False)) == {BASE_PARTS}


def test_never_fewer_than_the_base() -> None:
    """A line that is said to be slow has the base all the same."""
    assert fly(Flight(1), "each", 3) == [BASE_PARTS] * 3


def test_nothing_is_late_before_there_are_kin() -> None:
    """One request fewer than `LEAST_KIN` says nothing; the next one does."""
    lateness = Lateness()
    for _ in range(LEAST_KIN - 1):
        lateness.arrived(1 << 20, 1.0)
    assert lateness.late_s(1 << 20) == float("inf")
    lateness.arrived(1 << 20, 1.0)
    assert lateness.late_s(1 << 20) == pytest.approx(LATE_FACTOR)


def test_kin_are_of_about_the_same_size() -> None:
    """What small requests take says nothing about large ones."""
    lateness = Lateness()
    for _ in range(LEAST_KIN):
        lateness.arrived(4096, 1.0)
    assert lateness.late_s(5000) == pytest.approx(LATE_FACTOR)
    assert lateness.late_s(1 << 23) == float("inf")


def test_one_slow_request_does_not_move_the_bound() -> None:
    """The slowest of twenty counts, not the slowest of all; and quick ones have a least."""
    lateness = Lateness()
    for index in range(64):
        lateness.arrived(4096, 5.0 if index == 30 else 0.001)
    assert lateness.late_s(4096) == LEAST_LATE_S


def test_not_each_request_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones are sorted for every eighth request, also when there have been many."""
    sorts = []

    def counted(durations_s: deque[float]) -> list[float]:
        sorts.append(len(durations_s))
        return sorted(durations_s)

    monkeypatch.setattr(flight, "sorted", counted, raising=False)
    lateness = Lateness()
    for _ in range(LEAST_KIN + 100 * JUDGED_KIN):
        lateness.arrived(100_000, 0.05)
    assert len(sorts) == 101
    assert sorts[-1] == KIN


def test_the_share_of_second_requests() -> None:
    """One at once, then no more than the share of what is asked for."""
    lateness = Lateness()
    made = 0
    for _ in range(1000):
        lateness.arrived(4096, 0.01)
        made += lateness.hedge()
    assert 1 <= made <= 1 + 1000 * HEDGED_SHARE
