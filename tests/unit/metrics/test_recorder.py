"""Measurements of a mount: exact with many threads, in OpenTelemetry's buckets, by program."""

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mountpoint.metrics._histogram import SCALE, Histogram, Threads, Timer
from mountpoint.metrics.recorder import (
    MAX_PROGRAMS,
    NOBODY,
    OTHERS,
    Meters,
    Programs,
    Trouble,
    difference,
    quantile,
    upper_bound,
)


def numbers(values: list[int]) -> dict[str, Any]:
    """Return a snapshot of a histogram of these values."""
    meters = Meters()
    for value in values:
        meters.read(value)
    found = meters.snapshot()["read_bytes"]
    assert isinstance(found, dict)
    return found


def test_a_histogram_of_nothing() -> None:
    """All values are zero, including the quantiles."""
    assert numbers([]) == {
        "count": 0, "total": 0, "least": 0, "most": 0, "zeros": 0, "buckets": []
    }  # fmt: skip
    assert quantile(numbers([]), 0.5) == 0.0


def test_the_plain_numbers() -> None:
    """Count, sum, minimum and maximum; zeros are in no bucket."""
    found = numbers([5, 0, 7, 1_000_000])
    assert {name: found[name] for name in ("count", "total", "least", "most", "zeros")} == {
        "count": 4, "total": 1_000_012, "least": 0, "most": 1_000_000, "zeros": 1
    }  # fmt: skip


def test_each_value_is_in_the_bucket_of_its_size() -> None:
    """Bucket i has the values above b^i and up to b^(i+1), with b the eighth root of two."""
    seed = random.randrange(2**32)
    chosen = random.Random(seed)
    for _ in range(2000):
        value = int(2 ** chosen.uniform(0, 39))
        histogram = Histogram()
        histogram.add(value)
        (bucket,) = [index for index, count in enumerate(histogram.buckets()) if count]
        # At a bound the logarithm may be off by its last bit.
        assert value <= upper_bound(bucket) * 1.000_001, (seed, value)
        assert bucket == 0 or value >= upper_bound(bucket - 1) * 0.999_999, (seed, value)


@pytest.mark.parametrize("power", range(1, 40))
def test_powers_of_two_end_a_bucket(power: int) -> None:
    """So eight buckets make one that ends exactly at a power of two."""
    histogram = Histogram()
    histogram.add(1 << power)
    assert len(histogram.buckets()) == power << SCALE
    histogram.add((1 << power) + max(1, (1 << power) >> 20))
    assert len(histogram.buckets()) > power << SCALE


def test_too_large_values_are_in_the_last_bucket() -> None:
    """A value that is too large is in the last bucket, and its sum is right."""
    histogram = Histogram()
    histogram.add(1 << 60)
    assert (histogram.buckets()[-1], histogram.total) == (1, 1 << 60)


def test_quantiles_are_close() -> None:
    """Quantiles are at most 9 % above the exact value."""
    seed = random.randrange(2**32)
    chosen = random.Random(seed)
    values = sorted(int(chosen.lognormvariate(8, 2)) + 1 for _ in range(5000))
    found = numbers(values)
    for share in (0.1, 0.5, 0.9, 0.99, 1.0):
        exact = values[max(0, round(share * len(values)) - 1)]
        assert exact <= quantile(found, share) * 1.000_001 <= exact * 1.1, (seed, share)


VALUES = st.lists(st.integers(0, 3) | st.integers(0, 1 << 42))


@given(VALUES, VALUES)
@example([0], [1 << 41])
def test_the_difference_of_two_snapshots(earlier: list[int], later: list[int]) -> None:
    """It has exactly the values in between, but minimum and maximum may be 10 % off."""
    found = difference(numbers(earlier), numbers(earlier + later))
    expected = numbers(later)
    for name in ("count", "total", "zeros", "buckets"):
        assert found[name] == expected[name]
    if later:
        least, most = min(later), max(later)
        # One bucket holds all values from 2^40 on.
        assert min(least, 1 << 40) * 0.9 <= found["least"] <= least * 1.000_001
        if most < 1 << 40:
            assert most * 0.999_999 <= found["most"] <= most * 1.1
        else:
            assert found["most"] == max(earlier + later)
    else:
        assert (found["least"], found["most"]) == (0, 0)


@given(st.lists(VALUES, max_size=5))
def test_differences_add_up(groups: list[list[int]]) -> None:
    """The sum of several differences equals the last snapshot, at any times."""
    seen: list[int] = []
    before, sums, buckets = numbers([]), {"count": 0, "total": 0, "zeros": 0}, [0] * 400
    for group in groups:
        seen += group
        after = numbers(seen)
        delta = difference(before, after)
        sums = {name: value + delta[name] for name, value in sums.items()}
        for bucket, count in enumerate(delta["buckets"]):
            buckets[bucket] += count
        before = after
    assert sums == {name: before[name] for name in sums}
    assert buckets[: len(before["buckets"])] == before["buckets"]
    assert sum(buckets) + before["zeros"] == before["count"]


@pytest.mark.slow
def test_a_snapshot_is_of_one_moment() -> None:
    """A snapshot is consistent: its buckets have as many values as its count, with any threads."""
    meters, done = Meters(), threading.Event()

    def count() -> None:
        value = 0
        while not done.is_set():
            value += 1
            meters.operation("read").end(meters.operation("read").begin())
            meters.read(value % 7)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2000):
            snapshot = meters.snapshot()
            for each in (
                snapshot["read_bytes"],
                *(t["us"] for t in snapshot["operations"].values()),
            ):
                assert each["count"] == each["zeros"] + sum(each["buckets"])
            for timer in snapshot["operations"].values():
                assert timer["begun"] == timer["us"]["count"] + timer["under_way"]
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_busy_threads() -> None:
    """The timers of several threads: activities in progress, and idle threads at each begin."""
    threads = Threads(3)
    read, write = Timer(threads), Timer(threads)
    first, second = read.begin(), write.begin()
    assert (threads.busy, threads.over) == (2, 0)
    read.end(first)
    write.end(second)
    write.begin()
    assert (threads.busy, threads.over) == (1, 2)
    assert threads.idle.numbers()["count"] == 3
    assert (threads.idle.least, threads.idle.most, threads.idle.total) == (1, 2, 5)
    for _ in range(5):  # more threads than it knows of
        read.begin()
    assert (threads.idle.least, threads.busy) == (0, 6)


def test_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all requests fail for a minute, it returns the last reason, while requests continue."""
    now_s = [0.0]
    monkeypatch.setattr("mountpoint.metrics.recorder.time.monotonic", lambda: now_s[0])
    trouble = Trouble()

    def after(seconds: float, reason: str | None) -> str:
        now_s[0] += seconds
        if reason is not None:
            trouble.note(reason)
        return trouble.lasting(60)

    assert after(0, "SlowDown") == ""
    assert after(59, "SlowDown") == ""
    assert after(2, "no connection") == "all requests of the last 61 s have failed: no connection"
    assert after(59, None).startswith("all requests of the last 120 s")
    assert after(1, None) == ""  # no request for a minute: unknown
    assert after(1, "SlowDown") != ""
    assert after(0, "") == ""
    assert after(100, "SlowDown") == ""
    assert after(59, "SlowDown") == ""


def test_no_value_is_lost() -> None:
    """Threads that measure in parallel lose nothing."""
    histogram, timer = Histogram(), Timer()

    def measure() -> None:
        for value in range(20_000):
            histogram.add(value)
            timer.end(timer.begin(), value % 2 == 0)

    threads = [threading.Thread(target=measure) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (histogram.count, histogram.total) == (160_000, 8 * sum(range(20_000)))
    assert (timer.histogram.count, timer.failures, timer.under_way) == (160_000, 80_000, 0)


def test_a_timer_knows_activities_under_way() -> None:
    """A dropped activity has ended, and is not counted."""
    timer = Timer()
    first, _ = timer.begin(), timer.begin()
    assert timer.under_way == 2
    timer.drop()
    timer.end(first)
    assert (timer.under_way, timer.histogram.count, timer.failures) == (0, 1, 0)


def test_requests_by_operation() -> None:
    """Times to the first byte and to the end, and failures by status."""
    meters = Meters()
    clock = meters.request("GetObject")
    clock.first_byte()
    clock.end(None)
    for status in (404, 404, 0):
        meters.request("GetObject").end(status)
    meters.request("HeadObject").drop()
    found = meters.snapshot()["requests"]
    assert found["GetObject"]["us"]["count"] == 4
    assert found["GetObject"]["first_byte_us"]["count"] == 1
    assert found["GetObject"]["failures"] == {"0": 1, "404": 2}
    assert found["HeadObject"]["us"]["count"] == 0
    assert [each["under_way"] for each in found.values()] == [0, 0]


def test_programs_by_name() -> None:
    """The work for this process is recorded under its name."""
    meters = Meters(os.getpid)
    meters.read(100)
    meters.written(7)
    meters.request("GetObject").end(None)
    name = Path("/proc/self/comm").read_text().strip()
    assert meters.snapshot()["programs"] == {
        name: {
            "reads": 1, "bytes_read": 100, "writes": 1, "bytes_written": 7,
            "requests": {"GetObject": 1},
        }
    }  # fmt: skip


def test_threads_go_by_their_process() -> None:
    """A thread has its own name, but the program's name counts."""
    started, done = threading.Event(), threading.Event()

    def named() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("some-thread")
        started.set()
        done.wait(10)

    thread = threading.Thread(target=named)
    thread.start()
    started.wait(10)
    programs = Programs(lambda: thread.native_id or 0)
    programs.current()
    done.set()
    thread.join()
    assert list(programs.snapshot()) == [Path("/proc/self/comm").read_text().strip()]


def test_unknown_programs() -> None:
    """No thread, or one that has ended."""
    programs = Programs(lambda: 0)
    programs.current()
    assert list(programs.snapshot()) == [NOBODY]


def test_programs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first programs have names; later ones are counted together."""
    threads = iter(range(1, 10_000))
    monkeypatch.setattr(
        "mountpoint.metrics.recorder.program_of", lambda thread: (f"p{thread}", thread)
    )
    programs = Programs(lambda: next(threads))
    for _ in range(9_999):
        programs.requested("GetObject")
    found = programs.snapshot()
    assert len(found) == MAX_PROGRAMS + 1
    assert found[OTHERS]["requests"] == {"GetObject": 9_999 - MAX_PROGRAMS}
