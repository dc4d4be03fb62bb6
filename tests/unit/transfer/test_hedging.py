"""When a request is late, decided from durations."""

from collections import deque

import pytest

from mountpoint.transfer import hedging
from mountpoint.transfer.hedging import (
    HEDGED_SHARE,
    JUDGED_REQUESTS,
    LAST_REQUESTS,
    LATE_FACTOR,
    MIN_LATE_S,
    MIN_REQUESTS,
    HedgingPolicy,
)


def test_nothing_is_late_without_history() -> None:
    """One request fewer than `MIN_REQUESTS` proves nothing; the next one does."""
    policy = HedgingPolicy()
    for _ in range(MIN_REQUESTS - 1):
        policy.arrived(1 << 20, 1.0)
    assert policy.late_s(1 << 20) == float("inf")
    policy.arrived(1 << 20, 1.0)
    assert policy.late_s(1 << 20) == pytest.approx(LATE_FACTOR)


def test_size_classes_are_separate() -> None:
    """The durations of small requests say nothing about large ones."""
    policy = HedgingPolicy()
    for _ in range(MIN_REQUESTS):
        policy.arrived(4096, 1.0)
    assert policy.late_s(5000) == pytest.approx(LATE_FACTOR)
    assert policy.late_s(1 << 23) == float("inf")


def test_one_slow_request_does_not_move_the_bound() -> None:
    """The slowest of twenty counts, not the slowest of all, and there is a minimum."""
    policy = HedgingPolicy()
    for index in range(64):
        policy.arrived(4096, 5.0 if index == 30 else 0.001)
    assert policy.late_s(4096) == MIN_LATE_S


def test_durations_are_not_sorted_after_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last durations are sorted only for every eighth request, also after many."""
    sorts = []

    def counted(durations_s: deque[float]) -> list[float]:
        sorts.append(len(durations_s))
        return sorted(durations_s)

    monkeypatch.setattr(hedging, "sorted", counted, raising=False)
    policy = HedgingPolicy()
    for _ in range(MIN_REQUESTS + 100 * JUDGED_REQUESTS):
        policy.arrived(100_000, 0.05)
    assert len(sorts) == 101
    assert sorts[-1] == LAST_REQUESTS


def test_the_share_of_second_requests() -> None:
    """One immediately, then only the given share of requests."""
    policy = HedgingPolicy()
    made = 0
    for _ in range(1000):
        policy.arrived(4096, 0.01)
        made += policy.hedge()
    assert 1 <= made <= 1 + 1000 * HEDGED_SHARE
