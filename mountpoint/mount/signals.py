"""Signals: SIGTERM, SIGINT and SIGHUP end the mount, even while all threads wait for S3.

llfuse's own handlers only set a flag; its main loop then joins its workers, which may wait for up
to a minute. So these signals are blocked in every thread, from before the first one starts, and one
thread takes them with sigwait. It first ends all waits, then lets llfuse's handler run (on itself),
and nudges llfuse's threads until the main loop has ended.

This process must never wait for its own mount, least of all here. A worker that reads a request
after the flag is set drops it without an answer, and the process that made the request then waits
in a state in which not even SIGKILL helps.

Before there is a mount the process just ends: there is nothing to clean up. If the caller makes us
ignore SIGHUP or SIGINT (nohup, a script's `&`), they stay ignored.

SIGUSR2 makes the same thread write a report, at any time, and changes nothing. (dd uses SIGUSR1
for this, but llfuse uses that one to nudge.) SIGURG, which programs ignore by default, is the
keeper's: the mount is to be handed over (`kept/upgrade`).
"""

import ctypes
import os
import signal
import threading
from collections.abc import Callable

import structlog

from mountpoint.mount.kept import keeper

log = structlog.get_logger(__name__)

ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
ASKING = signal.SIGUSR2
LEAVING = keeper.LEAVE

#: How often llfuse's threads are nudged, in seconds. A nudge is lost if it comes between a thread's
#: check of the flag and its next system call.
NUDGE_S = 0.05

#: The prefix of the names of the threads that llfuse starts for requests.
WORKERS = "fuse-worker-"


class SignalWatcher:
    """Takes the signals. Create it in the main thread, before any other thread.

    `report` is called for each SIGUSR2 until the mount ends, `leave` for a SIGURG while it serves.
    """

    def __init__(self, report: Callable[[], None]) -> None:
        # dependencies
        self._report = report
        # mutable
        self._interrupt: Callable[[], None] | None = None
        self._leave: Callable[[], None] | None = None
        self._serving = threading.Event()
        self._ended = threading.Event()
        # constants
        self._main = threading.get_ident()
        # A blocked signal stays pending even if it is ignored (sigwait(3)), and llfuse does not
        # leave it ignored.
        ignored = {each for each in ENDING if signal.getsignal(each) == signal.SIG_IGN}
        self._taken = ENDING - ignored | {signal.SIGTERM, ASKING, LEAVING}
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING | {ASKING, LEAVING})
        # llfuse restores the handler that was here before, and a nudge may come late.
        signal.signal(signal.SIGUSR1, _nothing)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def mounting(
        self, interrupt: Callable[[], None], leave: Callable[[], None] | None = None
    ) -> None:
        """Make a signal unmount from now on: it calls `interrupt` and ends the main loop."""
        self._interrupt = interrupt
        self._leave = leave

    def serving(self) -> None:
        """Note that the main loop has begun, so llfuse's handlers are in place."""
        self._serving.set()

    def ended(self) -> None:
        """Note that the main loop has ended."""
        self._ended.set()

    def _watch(self) -> None:
        while (number := signal.sigwait(self._taken)) in (ASKING, LEAVING):
            if number == ASKING:
                self._report()
            elif self._leave is not None:  # it waits for writers; other signals are taken meanwhile
                threading.Thread(target=self._leave, name="leave", daemon=True).start()
        if self._interrupt is None:
            os._exit(128 + number)
        log.info("ending the mount", signal=signal.Signals(number).name)
        self._serving.wait()
        self._interrupt()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        signal.pthread_kill(threading.get_ident(), number)
        while not self._ended.wait(NUDGE_S):
            signal.pthread_kill(self._main, signal.SIGUSR1)
            nudge_workers()


def nudge_workers() -> None:
    """Interrupt llfuse's threads that wait for a request. Only while its main loop runs."""
    for thread in threading.enumerate():
        if thread.name.startswith(WORKERS) and thread.native_id is not None:
            _nudge(thread.native_id)


def _nudge(native_id: int) -> None:
    """Send SIGUSR1 to a thread of this process that may have ended.

    Uses the thread's number, because pthread_kill(3) is undefined for a thread that was joined.
    glibc has tgkill(2) since 2.30.
    """
    ctypes.CDLL(None).tgkill(os.getpid(), native_id, signal.SIGUSR1)


def _nothing(*_: object) -> None:
    pass
