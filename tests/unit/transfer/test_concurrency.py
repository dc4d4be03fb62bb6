"""The number of parts in flight, decided from durations."""

import random

from mountpoint.transfer.concurrency import (
    BASE_PARTS,
    JUDGED,
    PAUSE_TURNS,
    ConcurrencyController,
)

MAX_PARTS = 20


def run(
    controller: ConcurrencyController, line: str, turns: int, *, waited: bool = True
) -> list[int]:
    """Let parts arrive for some turns; return the parts in flight after each.

    "each": every connection has its own limit. "shared": all share one line. "fast": each has its
    own, and eight reach the configured bandwidth.
    """
    found = []
    for _ in range(turns):
        before = controller.parts
        for _ in range(controller.parts // 2 + JUDGED * controller.parts):
            duration_s = {"each": 0.13, "shared": 0.0125 * before, "fast": 0.02}[line]
            controller.arrived(duration_s, waited=waited)
        found.append(controller.parts)
    return found


def test_more_where_each_connection_has_its_limit() -> None:
    """If parts take no longer, half as many are added, up to the maximum."""
    assert run(ConcurrencyController(MAX_PARTS), "each", 5) == [12, 18, 20, 20, 20]


def test_no_more_on_a_shared_line() -> None:
    """A try that slows all parts down is reverted, and not repeated for a while."""
    parts = run(ConcurrencyController(MAX_PARTS), "shared", PAUSE_TURNS + 4)
    assert parts[:2] == [12, BASE_PARTS]
    assert set(parts[2 : PAUSE_TURNS + 1]) == {BASE_PARTS}
    assert 12 in parts[PAUSE_TURNS + 1 :]


def test_chance_adds_up_to_little() -> None:
    """On a shared line and a busy machine, the mean stays close to the parts that fill the line."""
    random_ = random.Random(1)
    found = []
    for _ in range(20):
        controller = ConcurrencyController(MAX_PARTS)
        for _ in range(2000):
            usual_s = 0.002 + 0.007 * controller.parts
            controller.arrived(usual_s * random_.lognormvariate(0.0, 0.3), waited=True)
            found.append(controller.parts)
    assert sum(found) / len(found) < 9.5


def test_no_more_than_the_line_brings() -> None:
    """If eight parts reach the configured bandwidth, nothing is tried, even if readers wait."""
    assert set(run(ConcurrencyController(MAX_PARTS), "fast", 10)) == {BASE_PARTS}


def test_slow_readers_try_nothing() -> None:
    """If readers are slower, nothing is tried."""
    assert set(run(ConcurrencyController(MAX_PARTS), "each", 10, waited=False)) == {BASE_PARTS}


def test_never_fewer_than_the_base() -> None:
    """Even a slow configured line has the base."""
    assert run(ConcurrencyController(1), "each", 3) == [BASE_PARTS] * 3
