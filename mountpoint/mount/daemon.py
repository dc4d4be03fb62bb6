"""Go to the background: fork, a status pipe, detach.

The parent waits until the child reports that the mount serves requests, and only then returns to
the caller. So an error while mounting reaches the terminal, and a script that goes on after
`mount-s3` finds the files.

* The fork happens before any CRT object exists: its threads would not survive it. `work`, in the
  child, imports and builds everything that starts threads.
* The child writes one message to the pipe: `READY`, or `FAILED` and the text of the error. If the
  pipe ends without a message, the child has died; its exit status says how.
* One fork is enough. The second fork of the classic recipe prevents a session leader from gaining a
  controlling terminal by opening a tty, and nothing here opens one. With one fork, the parent knows
  the process that it waits for, and init adopts that process when the parent ends.
* The child starts a new session only when the mount is ready. Until then it stays in the caller's
  process group. For an automount that is systemd's group: autofs makes all other processes wait for
  the mount when they touch its directory (fs/autofs/root.c, autofs_d_manage).
* The child at once closes descriptors that the caller left open. It gives up standard output and
  error when the mount is ready, so that `out=$(mount-s3 ...)` returns as soon as the parent ends.
* The umask stays. The working directory becomes "/", so that the caller's file system can be
  unmounted. Paths from the command line are absolute by then (`cli/main`); those that botocore will
  read from the environment later are made absolute here.

Not known here: what a mount is, and signals after the mount is ready.
"""

import contextlib
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, Protocol

import structlog

from mountpoint.errors import MountError

log = structlog.get_logger(__name__)

READY = b"R"
FAILED = b"E"

#: An error is one or two lines. A pipe takes up to PIPE_BUF bytes (4096 on Linux, pipe(7)) in one
#: piece and without waiting for the reader.
MAX_MESSAGE_BYTES = select.PIPE_BUF - 1

#: How long the parent waits for the child. Each request on the way has its own deadline, 60 s by
#: default. systemd gives a mount unit 90 s (DefaultTimeoutStartSec); before that the mount should
#: end by itself and say why.
START_TIMEOUT_S = 85.0

#: How long a child may take to unmount after it was told to stop.
STOP_TIMEOUT_S = 10.0

#: Signals that stop a parent that waits, and its child.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Files that botocore reads again when credentials are refreshed.
#: https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html
PATH_VARIABLES = (
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CA_BUNDLE",
)


#: What the process in the background does: it gets a function to call once the mount serves, and
#: returns the exit code.
Work = Callable[[Callable[[], None]], int]


class Status(Protocol):
    """How a process that mounts reports to the one that waits for it."""

    def ready(self) -> None:
        """Report that the mount serves requests. Raises MountError if nobody waits any more."""

    def failed(self, error: MountError) -> None:
        """Report why there is no mount, unless it was reported that there is one."""


def run_in_background(
    work: Work, *, log_hint: str = "", timeout_s: float = START_TIMEOUT_S
) -> None:
    """Run `work(on_ready)` in a child process; return once it has called `on_ready`.

    The child never returns from this function: its exit status is what `work` returns. `on_ready`
    raises MountError when the parent no longer waits. `log_hint` says where the log is.

    Raises MountError if the child raised one, died, or took too long. An exception in the parent,
    such as Ctrl-C, stops the child first.
    """

    def fork(reader: int, writer: int, mask: set[int | signal.Signals]) -> int:
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _child(work, writer, log_hint, mask)
        return pid

    _wait_for(fork, log_hint, timeout_s)


def wait_for(start: Callable[[int], int], *, log_hint: str) -> None:
    """Call `start`, and return once the process that it starts has reported that it serves.

    `start` gets the descriptor on which the process reports (`READY`, `FAILED`), and returns the
    process's pid. It is called while signals are blocked. Raises as `run_in_background` does.
    """
    _wait_for(lambda _reader, writer, _mask: start(writer), log_hint, START_TIMEOUT_S)


def _wait_for(
    start: Callable[[int, int, set[int | signal.Signals]], int], log_hint: str, timeout_s: float
) -> None:
    _open_standard_descriptors()
    _flush()  # or the child would write the same text again
    reader, writer = os.pipe()
    # A signal that ended the parent before it handles signals would leave the child behind.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    pid = start(reader, writer, mask)
    os.close(writer)
    try:
        with _termination_raises():
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _wait_until_ready(pid, reader, log_hint, timeout_s)
    except MountError:
        raise
    except BaseException:
        _stop(pid, reader)
        raise
    finally:
        os.close(reader)


def unexpected(error: BaseException, log_hint: str) -> MountError:
    """Return the two lines that report an unforeseen error, and log the error in full."""
    if structlog.is_configured():
        log.critical("unexpected error", exc_info=error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return MountError(f"unexpected error: {text}{where}", log_hint)


# The parent


def _wait_until_ready(pid: int, reader: int, log_hint: str, timeout_s: float) -> None:
    if not _readable(reader, timeout_s):
        _stop(pid, reader)
        raise MountError(f"the mount was not ready after {timeout_s:g} seconds", log_hint)
    message = os.read(reader, select.PIPE_BUF)
    if message == READY:
        return
    code = _reap(pid, reader)
    if message.startswith(FAILED):
        what, _, hint = message[1:].decode("utf-8", "replace").partition("\n")
        raise MountError(what, hint)
    how = f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    raise MountError(f"the mount process ended before the mount was ready: {how}", log_hint)


def _stop(pid: int, reader: int) -> None:
    """Tell the child to unmount and end; kill it if it does not."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGTERM)
        _reap(pid, reader)


def _reap(pid: int, reader: int) -> int:
    """Wait for the end of the child, which also ends the pipe; return its exit code."""
    while _readable(reader, STOP_TIMEOUT_S):
        if not os.read(reader, select.PIPE_BUF):
            break
    else:
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _readable(reader: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that the child is stopped on the way out."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    ending = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        ending.append(signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_standard_descriptors() -> None:
    """Open descriptors 0 to 2 if the caller closed them, or the pipe would get their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


# The child


class _Status:
    """The child's end of the pipe: it sends one message and is closed.

    `_descriptor` is then None, because its number may soon belong to another file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def ready(self) -> None:
        """Detach from the caller and tell the parent that the mount is ready. Only once."""
        if self._descriptor is None:
            return
        detach()
        try:
            self._send(READY)
        except BrokenPipeError:
            raise MountError("the process that requested the mount is gone") from None

    def failed(self, error: MountError) -> None:
        """Tell the parent why there is no mount, if it still listens."""
        if self._descriptor is not None:
            text = str(error).encode("utf-8", "backslashreplace")
            with contextlib.suppress(BrokenPipeError):
                self._send(FAILED + text[:MAX_MESSAGE_BYTES])

    def _send(self, message: bytes) -> None:
        descriptor, self._descriptor = self._descriptor, None
        assert descriptor is not None
        try:
            os.write(descriptor, message)
        finally:
            if message == READY:  # otherwise the end of the process ends the pipe
                os.close(descriptor)


def _child(
    work: Work,
    writer: int,
    log_hint: str,
    mask: set[int | signal.Signals],
) -> NoReturn:
    """Run `work` with this signal mask, and end the process."""
    for number in (signal.SIGINT, signal.SIGHUP):
        # An ignored signal concerns a terminal, which this process leaves.
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    serve(work, _Status(writer), log_hint)


def serve(work: Work, status: Status, log_hint: str) -> NoReturn:
    """Run `work` in a process that is there for it alone, and end that.

    `os._exit`: exit handlers are the parent's.
    """
    code = 1
    try:
        _close_inherited()
        _replace(0)
        code = work(status.ready)
        status.failed(MountError("the mount ended before it was ready", log_hint))
    except MountError as error:
        if structlog.is_configured():
            log.error("mount failed", reason=error.what, hint=error.hint)
        status.failed(error)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        status.failed(unexpected(error, log_hint))
    finally:
        with contextlib.suppress(Exception):
            logging.shutdown()
        os._exit(code)


def detach() -> None:
    """Give up the caller's terminal or pipes, its session and its working directory."""
    os.setsid()
    _flush()
    _replace(1)
    _replace(2)
    keep_paths()
    os.chdir("/")


def keep_paths() -> None:
    """Make paths absolute that botocore will read from the environment later."""
    for name in PATH_VARIABLES:
        value = os.environ.get(name)
        if value and not value.startswith("~"):
            os.environ[name] = os.path.abspath(value)


def _close_inherited() -> None:
    """Close the descriptors that the caller left open.

    Inheritable descriptors are the caller's: Python makes its own non-inheritable (PEP 446), and
    exec has closed the others.
    """
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        with contextlib.suppress(OSError):  # listdir's own descriptor is closed by now
            if descriptor > 2 and os.get_inheritable(descriptor):
                os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by the caller
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def _replace(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)
