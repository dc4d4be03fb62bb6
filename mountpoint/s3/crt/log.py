"""The CRT's own log: from lines of text to the standard library's loggers `awscrt.*`.

awscrt can also call Python for each line (`awscrt.logging`), but the CRT logs while it holds
locks of its own. Who logs then waits for the GIL, and who holds the GIL and makes a request
waits for that lock: a deadlock for good, in a moment where eight programs read at once (awscrt
0.38). So the CRT writes to a pipe, which it does from a thread that nothing waits for, and a
thread of ours reads it. Another one flushes: the CRT writes with stdio, which keeps the last
4 KiB to itself. When the process ends, what was logged in its last moment may be missing: nobody
reads any more then, and exit(3), which flushes stdio, would wait for a full pipe for good.
"""

import atexit
import contextlib
import ctypes
import functools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable

LEVELS = {
    "FATAL": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARN": logging.WARNING,
    "INFO": logging.INFO,
    "DEBUG": logging.DEBUG,
    "TRACE": logging.DEBUG,
}
FLUSH_S = 0.2
#: No less than a pipe holds by default.
PIPE_BYTES = 1 << 20
#: [LEVEL] [time] [thread] [subject] - text
HEAD = re.compile(r"\[([A-Z]+)\] \[[^]]*\] \[[^]]*\] \[([^]]*)\] - ")


def relay(start: Callable[[str], None]) -> None:
    """Have `start` begin logging to the path it is called with, and log what is written there."""
    reader, writer = os.pipe()
    try:
        start(f"/proc/self/fd/{writer}")
    finally:
        os.close(writer)  # the path has been opened
    atexit.register(_let_go, os.fstat(reader))
    ended = threading.Event()
    read = functools.partial(_log_pipe, reader, ended)
    flush = functools.partial(_flush, ended)
    for work, name in ((read, "awscrt-log"), (flush, "awscrt-flush")):
        threading.Thread(target=work, name=name, daemon=True).start()


def _let_go(pipe: os.stat_result) -> None:
    """Have no writer of a pipe wait any more, nor one that waits already.

    To close its other end is not enough: the CRT opens its log to read it, too ("a+").
    """
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing is closed by now
            if os.path.samestat(os.fstat(int(entry)), pipe):
                os.set_blocking(int(entry), False)
                # A writer that waits looks at the flag again only when there is room. Until then
                # it holds the lock of the stream, which exit(3) takes to flush it.
                os.read(int(entry), PIPE_BYTES)


def _log_pipe(reader: int, ended: threading.Event) -> None:
    with open(reader, encoding="utf-8", errors="backslashreplace", newline="\n") as lines:
        log_lines(lines)
    ended.set()


def _flush(ended: threading.Event) -> None:
    """Flush stdio, in a thread that may wait: a full pipe holds the stream's lock."""
    libc = ctypes.CDLL(None)
    while not ended.wait(FLUSH_S):
        libc.fflush(None)


def log_lines(lines: Iterable[str]) -> None:
    """Log each line. One without a head (a request, say) goes on with the message before it."""
    logger, level = logging.getLogger("awscrt"), logging.DEBUG
    for line in lines:
        head = HEAD.match(line)
        if head is not None:
            logger = logging.getLogger(f"awscrt.{head.group(2)}")
            level = LEVELS.get(head.group(1), logging.DEBUG)
            line = line[head.end() :]
        logger.log(level, "%s", line.rstrip("\n"))
