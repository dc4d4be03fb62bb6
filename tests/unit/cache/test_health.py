"""When the cache directory is used, and when it steps aside."""

import pytest
import structlog.testing

from mountpoint.cache.health import COMPARED_BYTES, MIN_BYTES, PAUSE_S, STUCK_S, Health, Speeds

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health("/cache", "reading", clock)


def is_usable(health: Health) -> bool:
    return health.usable


def test_an_outage(health: Health, clock: Clock) -> None:
    """An outage has one warning, lasts until a success, and is tried after each pause."""
    with structlog.testing.capture_logs() as logs:
        assert is_usable(health)
        for _ in range(3):
            health.failed(28)
            assert not is_usable(health)
            clock.now_s += PAUSE_S - 0.1
            assert not is_usable(health)
            clock.now_s += 0.2
            assert is_usable(health)
        health.succeeded()
        health.succeeded()
        assert is_usable(health)
        health.failed(0, why="another reason")
    assert [(line["log_level"], line.get("reason")) for line in logs] == [
        ("warning", "No space left on device"),
        ("info", None),
        ("warning", "another reason"),
    ]


def test_a_success_does_not_end_a_pause(health: Health, clock: Clock) -> None:
    """A read that was under way when another failed says nothing about the disk now."""
    health.failed(5)
    health.succeeded()
    assert not is_usable(health)
    clock.now_s += PAUSE_S
    assert is_usable(health)


def test_operations_that_are_stuck(health: Health, clock: Clock) -> None:
    """An operation that takes long keeps others away, until it ends."""
    first, second = object(), object()
    health.begin(first)
    clock.now_s += STUCK_S - 0.1
    health.begin(second)
    assert is_usable(health)
    clock.now_s += 0.2
    assert not is_usable(health)
    health.end(first)
    assert is_usable(health)
    clock.now_s += STUCK_S
    assert not is_usable(health)
    health.end(second)
    health.end(second)
    assert is_usable(health)


def test_a_slow_disk() -> None:
    """The disk is slower only after enough bytes of both, and if the difference is clear."""
    speeds = Speeds()
    assert not speeds.disk_is_slower()
    for _ in range(COMPARED_BYTES // MIB):
        assert not speeds.disk_is_slower()
        speeds.read(MIB, 0.02)
    assert not speeds.disk_is_slower()
    for _ in range(COMPARED_BYTES // MIB - 1):
        speeds.fetched(MIB, 0.01)
    assert not speeds.disk_is_slower()
    speeds.fetched(MIB, 0.01)
    assert speeds.disk_is_slower()
    assert not speeds.disk_is_slower()  # the disk's record has begun anew


def test_a_disk_that_is_hardly_slower() -> None:
    """A little slower is fine: it saves requests."""
    speeds = Speeds()
    for _ in range(300):
        speeds.read(MIB, 0.014)
        speeds.fetched(MIB, 0.01)
    assert not speeds.disk_is_slower()


def test_small_ranges() -> None:
    """The time of a small range is that of its request: it is not compared."""
    speeds = Speeds()
    for _ in range(1000):
        speeds.read(MIN_BYTES - 1, 10)
        speeds.fetched(MIN_BYTES - 1, 0.01)
    assert not speeds.disk_is_slower()


def test_what_was_long_ago() -> None:
    """A disk that becomes slow is noticed although it was fast for hours."""
    speeds = Speeds()
    for _ in range(100_000):
        speeds.read(MIB, 0.001)
        speeds.fetched(MIB, 0.01)
    for count in range(1000):
        speeds.read(MIB, 0.1)
        if speeds.disk_is_slower():
            assert count < 200
            return
    raise AssertionError("never noticed")
