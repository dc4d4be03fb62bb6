"""The CRT's own log: from lines of text to the standard library's loggers `awscrt.*`.

awscrt can also call Python for each line (`awscrt.logging`), but the CRT logs while it holds its
own locks. The logging thread then waits for the GIL, while a thread that holds the GIL and sends a
request waits for that lock. This deadlock occurred as soon as eight programs read at once (awscrt
0.38). So the CRT writes to a pipe, from a thread that nothing waits for, and a thread of ours reads
it. A second thread flushes, because the CRT writes with stdio, which buffers the last 4 KiB. The
last lines before the process ends may be lost: nothing reads the pipe then, and exit(3), which
flushes stdio, would wait forever for a full pipe.
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
#: At least the default capacity of a pipe.
PIPE_BYTES = 1 << 20
#: [LEVEL] [time] [thread] [subject] - text
HEAD = re.compile(r"\[([A-Z]+)\] \[[^]]*\] \[[^]]*\] \[([^]]*)\] - ")


def relay(start: Callable[[str], None]) -> None:
    """Call `start` with a path to log to, and log the lines that are written to it."""
    reader, writer = os.pipe()
    try:
        start(f"/proc/self/fd/{writer}")
    finally:
        os.close(writer)  # `start` has opened the path
    atexit.register(_let_go, os.fstat(reader))
    ended = threading.Event()
    read = functools.partial(_log_pipe, reader, ended)
    flush = functools.partial(_flush, ended)
    for work, name in ((read, "awscrt-log"), (flush, "awscrt-flush")):
        threading.Thread(target=work, name=name, daemon=True).start()


def _let_go(pipe: os.stat_result) -> None:
    """Unblock all writers of the pipe, now and later.

    Closing the read end is not enough: the CRT opens its log for reading, too ("a+").
    """
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor that listdir used is closed
            if os.path.samestat(os.fstat(int(entry)), pipe):
                os.set_blocking(int(entry), False)
                # A blocked writer checks the flag only once there is room. Until then it holds the
                # stream's lock, which exit(3) needs to flush.
                os.read(int(entry), PIPE_BYTES)


def _log_pipe(reader: int, ended: threading.Event) -> None:
    with open(reader, encoding="utf-8", errors="backslashreplace", newline="\n") as lines:
        log_lines(lines)
    ended.set()


def _flush(ended: threading.Event) -> None:
    """Flush stdio, on its own thread because it may block: a full pipe holds the stream's lock."""
    libc = ctypes.CDLL(None)
    while not ended.wait(FLUSH_S):
        libc.fflush(None)


def log_lines(lines: Iterable[str]) -> None:
    """Log each line. A line without a head (part of a request) continues the previous message."""
    logger, level = logging.getLogger("awscrt"), logging.DEBUG
    for line in lines:
        head = HEAD.match(line)
        if head is not None:
            logger = logging.getLogger(f"awscrt.{head.group(2)}")
            level = LEVELS.get(head.group(1), logging.DEBUG)
            line = line[head.end() :]
        logger.log(level, "%s", line.rstrip("\n"))
