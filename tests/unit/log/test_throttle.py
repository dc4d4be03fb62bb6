"""A repeated refusal is logged once a minute."""

from types import SimpleNamespace

from mountpoint.log.throttle import MANY_REFUSALS, QUIET_S, LogThrottle


def make() -> tuple[LogThrottle, SimpleNamespace]:
    """Return the throttle and its clock."""
    clock = SimpleNamespace(now_s=1000.0)
    return LogThrottle(lambda: clock.now_s), clock


def test_once_a_minute() -> None:
    """The first is logged, the next ones are counted, and their number is logged a minute later."""
    throttle, clock = make()
    assert throttle.note("a") == 0
    for _ in range(5):
        clock.now_s += QUIET_S / 10
        assert throttle.note("a") is None
    clock.now_s += QUIET_S / 2
    assert throttle.note("a") == 5
    assert throttle.note("a") is None


def test_each_by_itself() -> None:
    """Another path, operation or reason is another refusal."""
    throttle, _ = make()
    assert [throttle.note(each) for each in ("a", "b", "a")] == [0, 0, None]


def test_many() -> None:
    """The oldest are forgotten, so memory is bounded."""
    throttle, _ = make()
    for each in range(MANY_REFUSALS + 1):
        assert throttle.note(each) == 0
    assert throttle.note(MANY_REFUSALS) is None
    assert throttle.note(0) == 0
