"""What is refused again is said once a minute."""

from types import SimpleNamespace

from mountpoint.log.throttle import MANY_REFUSALS, QUIET_S, Refusals


def make() -> tuple[Refusals, SimpleNamespace]:
    """Return the object, and its clock."""
    clock = SimpleNamespace(now_s=1000.0)
    return Refusals(lambda: clock.now_s), clock


def test_once_a_minute() -> None:
    """The first is said, the next ones are counted, and said with their number a minute later."""
    refusals, clock = make()
    assert refusals.note("a") == 0
    for _ in range(5):
        clock.now_s += QUIET_S / 10
        assert refusals.note("a") is None
    clock.now_s += QUIET_S / 2
    assert refusals.note("a") == 5
    assert refusals.note("a") is None


def test_each_by_itself() -> None:
    """Another path, operation or reason is another refusal."""
    refusals, _ = make()
    assert [refusals.note(each) for each in ("a", "b", "a")] == [0, 0, None]


def test_many() -> None:
    """The oldest are forgotten; memory has a bound."""
    refusals, _ = make()
    for each in range(MANY_REFUSALS + 1):
        assert refusals.note(each) == 0
    assert refusals.note(MANY_REFUSALS) is None
    assert refusals.note(0) == 0
