"""Run real code in several threads, one at a time: a seed determines every switch between them.

Locks, conditions, events and futures that are made within an `Interleaving` switch threads when one
of them is taken, released or waited for. In the code of the package threads may also be switched
before any line. So a seed repeats a run, and many seeds try many orders.

Time stands still while a thread can run. When all of them wait, it jumps to the first deadline, and
`waited_s` says how far: where nobody should have to wait for a deadline, a signal was lost. If
there is no deadline, that is a deadlock. `run` raises Stuck, and says where each thread waits.

Not seen: waits in C. A test replaces what would wait there (`wait_until`).
"""

import _thread
import functools
import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

import mountpoint
from tests.soak import FACTOR, SEED, TIMES, count_cases

PACKAGE = str(Path(mountpoint.__file__).parent)
#: How often threads are switched at a lock that is free, and between two lines.
LOCK_SHARES, LINE_SHARES = (0.2, 0.6, 1.0), (0.0, 0.03, 0.1, 0.3)
#: More than any run that ends.
MAX_SWITCHES, MAX_WAIT_S = 200_000, 3600.0
NEVER_S = float("inf")
#: Something to do, and whether there is any of it.
Server = tuple[Callable[[], bool], Callable[[], object]]


class Stuck(Exception):
    """All threads wait for each other, or the run does not end."""


class Abandoned(BaseException):
    """Ends each thread of a run that is stuck."""


class _Thread:
    """A thread that runs while it has the baton. It waits until `ready` or `until_s`."""

    def __init__(self, number: int, program: Callable[[], object]) -> None:
        self.number, self.program = number, program
        self.baton = _thread.allocate_lock()
        self.baton.acquire()
        self.ident = 0
        self.ready: Callable[[], bool] = _yes
        self.until_s = NEVER_S
        self.error: BaseException | None = None


class Interleaving:
    """One run, in a `with`. `random` is for the test: the order of the threads does not change it.

    `switches` has the numbers of the threads that ran, one after another.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.waited_s = 0.0
        self.switches: list[int] = []
        self._order = random.Random(~seed)
        self._lock_share = self._order.choice(LOCK_SHARES)
        self._line_share = self._order.choice(LINE_SHARES)
        self._began_s = time.monotonic()
        self._threads: list[_Thread] = []
        self._left: list[_Thread] = []
        self._current: _Thread | None = None
        self._stuck: Stuck | None = None
        self._over = _thread.allocate_lock()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        for name in ("Lock", "_allocate_lock"):
            self._patch.setattr(threading, name, lambda: Lock(self))
        self._patch.setattr(threading, "RLock", lambda: RLock(self))
        for module, name in ((threading, "_time"), (time, "monotonic")):
            self._patch.setattr(module, name, lambda: self._began_s + self.waited_s)
        gc.disable()  # its calls of __del__ would come at other places in each run
        return self

    def __exit__(self, *_: object) -> None:
        gc.enable()
        self._patch.undo()

    def run(self, *programs: Callable[[], object], servers: Sequence[Server] = ()) -> None:
        """Run the programs to their ends; raise their first error. Servers work until then."""
        users = [_Thread(number, each) for number, each in enumerate(programs)]

        def serve(has_work: Callable[[], bool], work: Callable[[], object]) -> None:
            def ready() -> bool:
                return has_work() or not any(each in self._left for each in users)

            while self.wait_until(ready) and has_work():
                work()

        self._threads = users + [_Thread(-1, functools.partial(serve, *each)) for each in servers]
        self._left = list(self._threads)
        self._over.acquire()
        for thread in self._threads:
            _thread.start_new_thread(self._work, (thread,))
        self._go_on()
        with self._over:
            errors = [*(each.error for each in self._threads), self._stuck]
        for error in errors:
            if error is not None and not isinstance(error, Abandoned):
                raise error

    def wait_until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Let other threads run until a condition holds; return whether it does.

        The condition takes no lock.
        """
        thread = self._current
        if thread is None:
            if timeout_s is None and not ready():
                raise Stuck("no thread is left that could change this")
            return ready()
        thread.ready = ready
        if timeout_s is not None:
            thread.until_s = time.monotonic() + max(timeout_s, 0.0)
        self.switch()
        thread.ready, thread.until_s = _yes, NEVER_S
        return ready()

    def maybe_switch(self) -> None:
        """Switch to another thread, or do not."""
        if self._is_running() and self._order.random() < self._lock_share:
            self.switch()

    def switch(self) -> None:
        """Let any thread run that can, maybe the same."""
        thread = self._current
        assert thread is not None
        self._go_on()
        thread.baton.acquire()
        self._current = thread
        if self._stuck is not None:
            raise Abandoned

    @property
    def is_stuck(self) -> bool:
        """Whether the run has been given up."""
        return self._stuck is not None

    def _is_running(self) -> bool:
        """Whether the caller is a thread of this run that may lose the baton now."""
        thread = self._current
        return thread is not None and thread.ident == _thread.get_ident() and not self.is_stuck

    def _work(self, thread: _Thread) -> None:
        thread.ident = _thread.get_ident()
        thread.baton.acquire()
        self._current = thread
        if self._line_share:
            sys.settrace(self._on_call)
        try:
            if not self.is_stuck:
                thread.program()
        except BaseException as error:
            thread.error = error
        finally:
            sys.settrace(None)
            self._current = None
            self._left.remove(thread)
            if self._left:
                self._go_on()
            else:
                self._over.release()

    def _go_on(self) -> None:
        """Give the baton to a thread that can run."""
        self._current = None
        ready = [each for each in self._left if self.is_stuck or each.ready()]
        if not ready:
            first = min(self._left, key=lambda each: each.until_s)
            wait_s = first.until_s - time.monotonic()
            if self.waited_s + wait_s <= MAX_WAIT_S:
                self.waited_s += max(wait_s, 0.0)
                ready = [first]
        if (not ready or len(self.switches) > MAX_SWITCHES) and not self.is_stuck:
            self._stuck = Stuck("; ".join(self._where(each) for each in self._left))
            ready = self._left
        chosen = self._order.choice(ready)
        self.switches.append(chosen.number)
        chosen.baton.release()

    def _where(self, thread: _Thread) -> str:
        frame = sys._current_frames().get(thread.ident)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        place = "" if frame is None else f"{frame.f_code.co_qualname}:{frame.f_lineno}"
        return f"thread {thread.number} waits in {place}"

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._on_line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and self._is_running() and self._order.random() < self._line_share:
            self.switch()
        return self._on_line


class Lock:
    """A lock of one run."""

    def __init__(self, run: Interleaving) -> None:
        self._run = run
        self._count = 0
        self._owner: object = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """See threading.Lock."""
        if self._count == 0:
            self._run.maybe_switch()
        if self._count and not self._run.is_stuck:
            timeout_s = None if timeout < 0 else timeout
            if not blocking or not self._run.wait_until(lambda: self._count == 0, timeout_s):
                return False
        self._count, self._owner = 1, _thread.get_ident()
        return True

    def release(self) -> None:
        """See threading.Lock."""
        if not self._run.is_stuck:
            assert self._count, "a lock is released that nobody holds"
            self._count = 0
            self._run.maybe_switch()

    def locked(self) -> bool:
        """See threading.Lock."""
        return self._count > 0

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    """A lock that its owner can take again, with what a condition needs of it."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """See threading.RLock."""
        if self._is_owned():
            self._count += 1
            return True
        return super().acquire(blocking, timeout)

    __enter__ = acquire

    def release(self) -> None:
        """See threading.RLock."""
        if self._count > 1:
            self._count -= 1
        else:
            super().release()

    def _is_owned(self) -> bool:
        return self._count > 0 and self._owner == _thread.get_ident()

    def _release_save(self) -> int:
        count, self._count = self._count, 0
        return count

    def _acquire_restore(self, count: int) -> None:
        super().acquire()
        self._count = count


def explore(test: Callable[[Interleaving], None], count: int = 200) -> None:
    """Run a test with many seeds; name the one that fails. A soak runs many more, new ones."""
    seeds = list(range(max(round(count * min(FACTOR, 1.0)), 1)))
    seeds += [SEED + number for number in range(5 * count * TIMES) if TIMES > 1]
    for seed in seeds:
        count_cases(1)
        with Interleaving(seed) as it:
            try:
                test(it)
            except BaseException as error:
                error.add_note(f"explore only this: {test.__name__}, Interleaving({seed})")
                raise


def _yes() -> bool:
    return True
