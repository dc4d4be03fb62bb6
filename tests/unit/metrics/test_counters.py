"""A mount's counters: exact with many threads, and all in one line."""

import threading

import pytest
import structlog
from structlog.testing import capture_logs

from mountpoint.metrics.counters import NAMES, Counters


def test_all_begin_at_zero() -> None:
    """Each counter exists before anything is counted."""
    assert Counters().snapshot() == dict.fromkeys(NAMES, 0)


def test_counts_by_name() -> None:
    """A counter grows by one or by an amount; the others stay."""
    counters = Counters()
    counters.add("gets")
    counters.add("gets")
    counters.add("bytes_fetched", 5000)
    assert counters.snapshot() == dict.fromkeys(NAMES, 0) | {"gets": 2, "bytes_fetched": 5000}


def test_a_snapshot_stays() -> None:
    """A snapshot and the counters do not change each other."""
    counters = Counters()
    before = counters.snapshot()
    counters.add("lists")
    assert before["lists"] == 0
    before["lists"] = 7
    assert counters.snapshot()["lists"] == 1


def test_no_count_is_lost() -> None:
    """Threads that count in parallel lose nothing."""
    counters = Counters()

    def count() -> None:
        for _ in range(5000):
            counters.add("gets")
            counters.add("bytes_fetched", 3)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = counters.snapshot()
    assert (values["gets"], values["bytes_fetched"]) == (40_000, 120_000)


def test_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log line is at info level and has every counter, including zeros."""
    unconfigured = structlog.get_logger()  # other tests may have configured the module's own
    monkeypatch.setattr("mountpoint.metrics.counters.log", unconfigured)
    counters = Counters()
    counters.add("retries")
    with capture_logs() as lines:
        counters.log()
    values: dict[str, int] = dict.fromkeys(NAMES, 0)
    values["retries"] = 1
    assert lines == [{"event": "counters", "log_level": "info", **values}]
