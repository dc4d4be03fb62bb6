"""Signals of a mount, in its own process: they end a process."""

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # each starts an interpreter

HEAD = """
import os, signal, sys, threading, time
from mountpoint.mount.signals import SignalWatcher

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
reports = []
"""


def run(body: str) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return subprocess.run(
        [sys.executable, "-c", HEAD + body], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_before_there_is_a_mount(number: signal.Signals) -> None:
    """The process ends at once, with the status that a shell shows for the signal."""
    body = f"SignalWatcher(lambda: None)\nos.kill(os.getpid(), {number:d})\ntime.sleep(60)"
    assert run(body).returncode == 128 + number


def test_ignored_signals_stay_ignored() -> None:
    """SIGINT and SIGHUP that the caller ignores do nothing; SIGTERM always ends the process."""
    done = run(
        """
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
SignalWatcher(lambda: None)
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGHUP)
time.sleep(0.2)
print("lives", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""
    )
    assert (done.stdout, done.returncode) == ("lives\n", 128 + signal.SIGTERM)


def test_reports() -> None:
    """Each SIGUSR2 makes a report, and the process goes on."""
    done = run(
        """
made = threading.Semaphore(0)
SignalWatcher(made.release)
for _ in range(3):
    os.kill(os.getpid(), signal.SIGUSR2)
    assert made.acquire(timeout=30)
print("goes on")
"""
    )
    assert (done.stdout, done.returncode) == ("goes on\n", 0)


def test_while_mounted() -> None:
    """The waits end first, then the handler of the main loop runs, and the loop is nudged."""
    done = run(
        """
watcher = SignalWatcher(lambda: None)
order = []
def handler(*_):
    order.append("handler")
signal.signal(signal.SIGTERM, handler)
watcher.mounting(lambda: order.append("interrupt"))
watcher.serving()
os.kill(os.getpid(), signal.SIGTERM)
while "handler" not in order:
    time.sleep(0.01)
watcher.ended()
print(*order)
"""
    )
    assert (done.stdout.splitlines()[-1], done.returncode) == ("interrupt handler", 0)
