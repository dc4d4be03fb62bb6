"""The statistics that all streams share: what they count, and what follows for the budget."""

import pytest

from mountpoint.metrics.counters import Counters
from mountpoint.transfer.concurrency import BASE_PARTS
from mountpoint.transfer.memory_budget import Budget
from mountpoint.transfer.stats import TransferStats

MIB = 1 << 20
PART = 8 * MIB


class AimedBudget(Budget):
    """A budget that records its aims."""

    def __init__(self) -> None:
        self.aims: list[int] = []
        super().__init__(1024 * MIB)

    def aim(self, size_bytes: int) -> None:
        """See Budget."""
        self.aims.append(size_bytes)
        super().aim(size_bytes)


@pytest.fixture
def budget() -> AimedBudget:
    """A budget with enough memory."""
    return AimedBudget()


@pytest.fixture
def counters() -> Counters:
    """Counters at zero."""
    return Counters()


@pytest.fixture
def stats(budget: AimedBudget, counters: Counters) -> TransferStats:
    """Statistics of a link that takes 64 parts at once."""
    return TransferStats(budget, counters, part_bytes=PART, max_bytes=64 * PART)


def test_the_first_aim(stats: TransferStats, budget: AimedBudget) -> None:
    """Before anything is known, the budget aims at the base."""
    assert budget.aims == [BASE_PARTS * PART]


def test_slow_parts_that_readers_wait_for(stats: TransferStats, budget: AimedBudget) -> None:
    """While readers wait for whole parts, more parts are in flight, and never more than allowed."""
    for _ in range(200):
        stats.arrived(PART, 0.5, waited=True)
    assert budget.aims == sorted(budget.aims)
    assert BASE_PARTS * PART < budget.aims[-1] <= 64 * PART


def test_other_sizes_say_nothing_about_parts(stats: TransferStats, budget: AimedBudget) -> None:
    """Requests of other sizes do not change the number of parts in flight."""
    for _ in range(200):
        stats.arrived(PART // 2, 5.0, waited=True)
    assert len(budget.aims) == 1


def test_counters(stats: TransferStats, counters: Counters) -> None:
    """Bytes, reads that waited, and hedges that won are counted."""
    stats.read(100)
    stats.read(23)
    stats.waited()
    stats.waited(2)
    stats.waited(0)
    stats.hedged(won=False)
    stats.hedged(won=True)
    found = counters.snapshot()
    assert (found["bytes_read"], found["reads_waited"], found["hedges_won"]) == (123, 3, 1)


def test_a_refused_hedge_is_not_counted(stats: TransferStats, counters: Counters) -> None:
    """Hedges end when there were too many for the requests that arrived."""
    allowed = sum(stats.hedge() for _ in range(1000))
    assert allowed < 1000
    assert counters.snapshot()["hedges"] == allowed
