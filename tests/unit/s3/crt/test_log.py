"""The CRT's log: from its lines to our loggers."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mountpoint.s3.crt import log as crt_log

LINES = [
    "began before us\n",
    "[INFO] [2026-11-22T17:33:31Z] [00007febb9c6cb80] [S3Client] - id=0x1: made - [so] to speak\n",
    "[TRACE] [2026-11-22T17:33:31Z] [00007febb9c6cb80] [AuthSigning] - canonical request GET\n",
    "host:127.0.0.1\n",
    "\n",
    "[FATAL] [2026-11-22T17:33:31Z] [00007febb9c6cb80] [dns] - gone\n",
]


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="awscrt")


def test_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Each line has its subject's logger and its level; one without a head continues the last."""
    crt_log.log_lines(LINES)
    assert caplog.record_tuples == [
        ("awscrt", logging.DEBUG, "began before us"),
        ("awscrt.S3Client", logging.INFO, "id=0x1: made - [so] to speak"),
        ("awscrt.AuthSigning", logging.DEBUG, "canonical request GET"),
        ("awscrt.AuthSigning", logging.DEBUG, "host:127.0.0.1"),
        ("awscrt.AuthSigning", logging.DEBUG, ""),
        ("awscrt.dns", logging.CRITICAL, "gone"),
    ]


def test_relay(caplog: pytest.LogCaptureFixture) -> None:
    """Any text written to the path is logged, and the thread ends with the writer."""

    def start(path: str) -> None:
        Path(path).write_bytes(b"[WARN] [] [] [dns] - \xff 100 %s\nmore\n")

    crt_log.relay(start)
    for thread in threading.enumerate():
        if thread.name.startswith("awscrt-"):
            thread.join(60)
    assert caplog.record_tuples == [
        ("awscrt.dns", logging.WARNING, "\\xff 100 %s"),
        ("awscrt.dns", logging.WARNING, "more"),
    ]


@pytest.mark.slow
def test_requests_never_wait_for_the_log() -> None:
    """The CRT logs while it holds locks: waiting there for Python would be a deadlock."""
    program = """
import logging, os, threading
from awscrt.io import EventLoopGroup
from mountpoint.s3.crt.client import enable_crt_log

made, logged = threading.Event(), threading.Event()

class Waiting(logging.Handler):
    def emit(self, record):
        if not made.wait(20):
            os._exit(1)
        logged.set()

logging.getLogger("awscrt").addHandler(Waiting())
logging.getLogger("awscrt").setLevel(logging.DEBUG)
enable_crt_log(logging.DEBUG)
EventLoopGroup(1)
made.set()
os._exit(0 if logged.wait(20) else 2)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_the_end_of_the_process_does_not_wait_for_the_log() -> None:
    """Nothing reads the last lines, or those in stdio's buffer, so exit(3) must not block."""
    program = """
import atexit, ctypes, sys
from mountpoint.s3.crt import log as crt_log
libc = ctypes.CDLL(None)
libc.fopen.restype = libc.malloc.restype = ctypes.c_void_p
opened = []

def start(path):
    opened.append(ctypes.c_void_p(libc.fopen(path.encode(), b"a+")))
    room = libc.malloc(4 << 20)  # stays when Python has gone
    libc.setvbuf(opened[0], ctypes.c_void_p(room), 0, 4 << 20)  # _IOFBF

# Called after what `relay` has registered.
atexit.register(lambda: libc.fwrite(bytes(1 << 20), 1, 1 << 20, opened[0]))
crt_log.relay(start)
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=20, check=False)
    assert done.returncode == 7


@pytest.mark.slow
def test_the_end_of_the_process_does_not_wait_for_a_full_pipe() -> None:
    """The CRT's thread waits for a full pipe, and the process waits for that thread."""
    program = """
import logging, os, select, sys, threading
from awscrt.io import EventLoopGroup
from mountpoint.s3.crt import client as crt
from mountpoint.s3.crt import log as crt_log

reader, writer = os.pipe()
room = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY)
os.pipe = lambda: (reader, writer)
crt_log.log_lines = lambda lines: threading.Event().wait()
crt.enable_crt_log(logging.DEBUG)
groups = []
while select.select([], [room], [], 0.1)[1]:
    groups.append(EventLoopGroup(1))
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=20, check=False)
    assert done.returncode == 7
