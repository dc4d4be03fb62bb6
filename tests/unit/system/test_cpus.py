"""The processors that a process may use."""

import os

import pytest

from mountpoint.system import cpus


@pytest.mark.parametrize(
    ("allowed", "limit", "expected"),
    [(16, None, 16), (16, 2.5, 3), (2, 8.0, 2), (4, 0.5, 1), (1, None, 1)],
)
def test_usable_cores(
    monkeypatch: pytest.MonkeyPatch, allowed: int, limit: float | None, expected: int
) -> None:
    """The smaller of affinity and quota, at least one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(cpus, "cpu_limit", lambda: limit)
    assert cpus.usable_cores() == expected
