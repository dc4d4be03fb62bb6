"""Information about processes in /proc: the process of a thread, and whether it was killed."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mountpoint.system import procfs
from mountpoint.system.procfs import is_ending, process_of, program_of, who_closes


@contextmanager
def ended(*command: str, by: int = 0) -> Iterator[int]:
    """Run a command to its end, or end it with a signal; its process is not reaped."""
    process = subprocess.Popen(command)
    if by:
        process.send_signal(by)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        yield process.pid
    finally:
        process.wait()


def test_the_process_of_a_thread() -> None:
    """A thread's number leads to its process, a process's own to itself."""
    found = []
    thread = threading.Thread(target=lambda: found.append(process_of(threading.get_native_id())))
    thread.start()
    thread.join()
    assert found == [os.getpid()]
    assert process_of(os.getpid()) == os.getpid()
    assert who_closes(os.getpid()) == (os.getpid(), False)


def test_the_name_of_a_program() -> None:
    """A process has the name that ps(1) shows; an ended one has none."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG)
        while (found := program_of(child.pid))[0] != "sleep":  # execve is in progress
            assert found[1] == child.pid
    finally:
        child.kill()
        child.wait()
    assert program_of(child.pid) == ("", 0)
    assert program_of(0) == ("", 0)


def test_a_process_that_is_gone() -> None:
    """Nothing is known: it counts as its own process, and as not killed."""
    child = subprocess.Popen(["true"])
    child.wait()
    assert process_of(child.pid) == child.pid
    assert who_closes(child.pid) == (child.pid, False)
    assert who_closes(0) == (0, False)


@pytest.mark.parametrize(
    ("command", "by", "killed"),
    [
        (("true",), 0, False),
        (("sh", "-c", "exit 3"), 0, False),
        (("sleep", "60"), signal.SIGKILL, True),
        (("sleep", "60"), signal.SIGTERM, True),
        (("sleep", "60"), signal.SIGSEGV, True),
    ],
)
def test_whether_it_was_killed(command: tuple[str, ...], by: int, killed: bool) -> None:
    """An exit with any code is an orderly end, a signal is not."""
    with ended(*command, by=by) as pid:
        assert who_closes(pid) == (pid, killed)


def test_a_living_process() -> None:
    """A living process was not killed."""
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert who_closes(child.pid) == (child.pid, False)
    finally:
        child.kill()
        child.wait()


KILL, TERM, CHLD = 1 << 8, 1 << 14, 1 << 16


@pytest.mark.parametrize(
    ("own", "shared", "ending", "killed"),
    [
        (KILL, KILL, True, True),
        (KILL, TERM, True, True),
        (KILL | TERM, 0, True, True),  # sent to the thread
        (KILL, 0, True, False),  # another thread calls exit(3)
        (KILL, CHLD, True, False),  # and SIGCHLD has a handler
        (0, TERM, False, False),
        (CHLD, 0, False, False),
    ],
)
def test_a_waiting_thread_that_is_to_end(
    monkeypatch: pytest.MonkeyPatch, own: int, shared: int, ending: bool, killed: bool
) -> None:
    """Its pending signals tell whether it is to end, and whether a signal is the reason."""
    masks = {"SigPnd": own, "ShdPnd": shared, "SigBlk": 0, "SigIgn": 1 << 12, "SigCgt": CHLD}
    lines = [
        "Name:\tcat",
        "SigQ:\t2/100",
        *(f"{name}:\t{bits:016x}" for name, bits in masks.items()),
    ]
    status = "\n".join([*lines, ""]).encode()
    monkeypatch.setattr(procfs, "_read", lambda thread, name: status)
    assert is_ending(7) == (ending, killed)


def test_not_to_end() -> None:
    """A running process is not to end, and one that does not exist is unknown."""
    assert is_ending(os.getpid()) == (False, False)
    assert is_ending(0) == (False, False)
