"""The states of a streamed file: the transitions, and the waits of other threads."""

import threading
from collections.abc import Callable

import pytest

from mountpoint.errors import Interrupted, NotPermitted, ServerFault
from mountpoint.fs.writes.streamed import lifecycle
from mountpoint.fs.writes.streamed.lifecycle import MAX_WAITING, Lifecycle, State, Turns

ERROR = ServerFault("500")
STEPS: dict[str, Callable[[Lifecycle], None]] = {
    "upload": Lifecycle.begin_upload,
    "settle": Lifecycle.settle,
    "fail": lambda life: life.fail(ERROR),
    "reopen": Lifecycle.reopen,
    "remove": Lifecycle.remove,
}


def new_life(stopping: threading.Event | None = None) -> Lifecycle:
    return Lifecycle(Turns(stopping or threading.Event()))


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ("", State.OPEN),
        ("upload", State.UPLOADING),
        ("upload upload", State.UPLOADING),
        ("upload settle", State.SETTLED),
        ("upload settle upload", State.SETTLED),
        ("upload settle reopen", State.OPEN),
        ("upload fail", State.FAILED),
        ("fail", State.FAILED),
        ("fail reopen", State.OPEN),
        ("remove", State.REMOVED),
        ("upload settle remove", State.REMOVED),
        ("remove fail", State.REMOVED),
    ],
)
def test_steps(steps: str, state: State) -> None:
    """Only an open file takes writes, and nothing is left to upload in the last three states."""
    life = new_life()
    for step in steps.split():
        STEPS[step](life)
    assert life.state is state
    assert life.takes_writes == (state is State.OPEN)
    assert life.removed == (state is State.REMOVED)
    assert life.ended == (state not in (State.OPEN, State.UPLOADING))
    assert life.failure is (ERROR if "fail" in steps else None)


def test_the_first_failure_stays() -> None:
    """Programs learn of the first failure, even after a truncation."""
    life = new_life()
    life.fail(ERROR)
    life.fail(ServerFault("503"))
    life.reopen()
    assert life.failure is ERROR


def test_writing_goes_on_after_a_close() -> None:
    """A file that is written again is no longer about to be closed."""
    life = new_life()
    life.close()
    assert life.ending
    life.settle()
    life.reopen()
    assert not life.ending


@pytest.mark.parametrize("closing", [False, True])
def test_waiting_for_a_turn(monkeypatch: pytest.MonkeyPatch, *, closing: bool) -> None:
    """A thread waits for a file that is being closed, briefly, and for no other."""
    monkeypatch.setattr(lifecycle, "LOOK_S", 0.001)
    monkeypatch.setattr(lifecycle, "SETTLE_S", 60.0 if closing else 0.0)
    life = new_life()
    if closing:
        life.close()
        threading.Timer(0.01, life.settle).start()
        life.wait_turn(0.0)
        assert life.state is State.SETTLED
    else:
        with pytest.raises(NotPermitted, match="being written"):
            life.wait_turn(0.0)


def test_few_threads_wait() -> None:
    """The threads that serve the writer must not all wait for it."""
    life = new_life()
    taken = [life._turns._waiting.acquire(blocking=False) for _ in range(MAX_WAITING)]
    assert all(taken)
    with pytest.raises(NotPermitted, match="being written"):
        life.wait_turn(60.0)


def test_the_mount_ends() -> None:
    """Waits end with the mount."""
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Interrupted):
        new_life(stopping).wait_turn(60.0)
