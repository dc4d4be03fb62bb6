"""Processes in /proc: which program closes a file, and whether a signal is ending it.

A FUSE request includes the number of the *thread* that made it; 0 if that is in another container.
A file is closed by close(2), by execve(2), or when its process ends for any reason. Only /proc
distinguishes an orderly end from a kill.

A process that closes files in execve(2) holds a lock, and readers of its `stat` (and much else, so
`ps` too) wait for it: it would wait for us, and we for it, forever. `status` can always be read,
and shows which processes are ending: these have no memory any more.
"""

import os
import re
import signal

_NAME = re.compile(rb"^Name:\t(.*)$", re.MULTILINE)
_SIGNALS = re.compile(rb"^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt):\t([0-9a-f]+)$", re.MULTILINE)
_KILL = 1 << signal.SIGKILL - 1
_PROCESS = re.compile(rb"^Tgid:\s*(\d+)$", re.MULTILINE)
#: include/linux/sched.h: the process is ending.
PF_EXITING = 0x4
#: Indices in /proc/PID/stat after the name in brackets, where the state is 0: proc_pid_stat(5).
_FLAGS, _EXIT_CODE = 6, 49
#: The signal that ended it, as in the status of waitpid(2).
_SIGNAL = 0x7F


def process_of(thread: int) -> int:
    """Return the process of a thread; the thread's own number if that is unknown."""
    return _process(_read(thread, "status")) or thread


def who_closes(thread: int) -> tuple[int, bool]:
    """Return the process of a thread, and whether a signal is ending it.

    If unknown, these are the thread's own number and False.
    """
    status = _read(thread, "status")
    alive = not status or b"\nVmSize:" in status
    return _process(status) or thread, not alive and _is_killed(_read(thread, "stat"))


def is_ending(thread: int) -> tuple[bool, bool]:
    """Return whether a thread that waits is to end, and whether a signal ends its process.

    If its process ends in any way, the kernel has SIGKILL pending for the thread alone. A signal
    that ends a process stays pending, too: for all threads or for this one. If unknown, both are
    False.
    """
    status = _read(thread, "status")
    masks = {name: int(bits, 16) for name, bits in _SIGNALS.findall(status)}
    if not masks.get(b"SigPnd", 0) & _KILL:
        return False, False
    others = (masks[b"SigPnd"] | masks[b"ShdPnd"]) & ~_KILL
    harmless = masks[b"SigBlk"] | masks[b"SigIgn"] | masks[b"SigCgt"]
    return True, bool(masks[b"ShdPnd"] & _KILL or others & ~harmless)


def program_of(thread: int) -> tuple[str, int]:
    """Return the name and number of a thread's process; "" and 0 if unknown."""
    status = _read(thread, "status")
    process = _process(status)
    if process != thread:  # threads have names of their own
        status = _read(process, "status") if process else status
    name = _NAME.search(status)
    return (name[1].decode("utf-8", "backslashreplace") if name else ""), process


def _process(status: bytes) -> int:
    match = _PROCESS.search(status)
    return int(match[1]) if match else 0


def _is_killed(stat: bytes) -> bool:
    fields = stat.rpartition(b")")[2].split()
    if len(fields) <= _EXIT_CODE:
        return False
    return bool(int(fields[_FLAGS]) & PF_EXITING and int(fields[_EXIT_CODE]) & _SIGNAL)


def _read(thread: int, name: str) -> bytes:
    """Return a file of /proc/THREAD; b"" if it cannot be read."""
    # `open` makes three more system calls, for each file that is closed.
    try:
        file = os.open(f"/proc/{thread}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        # Read to the end, which may be far: a process can be in thousands of groups.
        return b"".join(iter(lambda: os.read(file, 4096), b""))
    except OSError:  # it has ended
        return b""
    finally:
        os.close(file)
