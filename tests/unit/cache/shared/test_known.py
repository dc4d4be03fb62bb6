"""What is known about blocks of the shared cache, and for how long."""

import pytest

from mountpoint.cache.shared import known
from mountpoint.cache.shared.known import KNOWN_S, Known, State


class Clock:
    """A clock that stands."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_last_state_counts() -> None:
    """A block has one state, the last one, until it is forgotten."""
    states = Known()
    assert (states.state(b"a"), states.any_missing) == (None, False)
    for state in (*State, State.MISSING, State.THERE, State.MISSING):
        states.note(b"a", state)
        assert (states.state(b"a"), states.any_missing) == (state, state is State.MISSING)
        states.check()
    states.note(b"a", None)
    assert (states.state(b"a"), states.any_missing) == (None, False)


@pytest.mark.parametrize("state", State)
def test_states_last_a_minute(state: State) -> None:
    """Then nothing is known; a block that was missing is still to be sent when it is read."""
    clock = Clock()
    states = Known(clock)
    states.note(b"a", state)
    clock.now_s = KNOWN_S - 1
    assert states.state(b"a") is state
    clock.now_s = KNOWN_S
    assert states.state(b"a") is None
    assert states.take_missing(b"a") is (state is State.MISSING)
    assert states.state(b"a") is (State.QUEUED if state is State.MISSING else None)
    assert not states.take_missing(b"a")
    states.check()


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each state some are remembered; many of one push out none of another."""
    monkeypatch.setattr(known, "MAX_KNOWN", 3)
    states = Known()
    states.note(b"missing", State.MISSING)
    for number in range(5):
        states.note(b"%d" % number, State.THERE)
        states.check()
    found = [states.state(b"%d" % number) for number in range(5)]
    assert found == [None, None, State.THERE, State.THERE, State.THERE]
    assert states.state(b"missing") is State.MISSING
