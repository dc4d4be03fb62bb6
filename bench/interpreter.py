"""How long a process holds the interpreter's lock (GIL).

What runs under that lock runs on one core, whatever the machine has. So the seconds for which it is
held per GB, or per read, limit the throughput on many cores: a lock that is held for 0.05 s per GB
allows 20 GB/s. They can be measured on any machine, also on one with two cores.

A second process looks into the memory of the first one, a few thousand times a second, whether the
lock is taken; the first one runs no slower. A holder that waits for a core holds the lock as well.
That is no work, so the share is multiplied by the time for which the process's threads ran, divided
by the time for which they ran or waited for a core (schedstat in proc_pid(5)).

The position of the lock is found in this program's own interpreter, which must be the same file.
It needs permission to read the process's memory (root).
"""

import contextlib
import ctypes
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Between two looks.
PAUSE_S = 0.0002
#: A switch interval that nothing else in the interpreter's memory equals: the lock is beside it.
MARK_US = 4_321
WORD_BYTES = 8
#: The state is an int: 0 means that the lock is free.
STATE_BYTES = 4


class NoLock(Exception):
    """The interpreter's lock was not found."""


@dataclass(frozen=True)
class Mapping:
    """A part of a process's memory that belongs to a file; `start` is that of the file's first."""

    path: str
    start: int
    stop: int


def mapping_of(maps: str, address: int) -> Mapping:
    """Return the mapping at an address, in the text of /proc/PID/maps. Pure. Raises NoLock.

    Memory of the same file without initial values (.bss) has no path there, but follows directly.
    """
    path, start, end = "", 0, 0
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        low, high = (int(each, 16) for each in fields[0].split("-"))
        name = fields[5] if len(fields) > 5 else ""
        if name and name != path:
            path, start = name, low
        elif not name and low != end:
            path = ""
        end = high
        if low <= address < high and path.startswith("/"):
            return Mapping(path, start, high)
    raise NoLock("the interpreter's memory is not that of a file")


def position() -> tuple[str, int]:
    """Return the file of this interpreter, and the position of its lock's state. Raises NoLock.

    The position counts from the file's first mapping. In memory the state is after the switch
    interval and the thread that holds the lock (struct _gil_runtime_state).
    """
    runtime = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))
    mapping = mapping_of(Path("/proc/self/maps").read_text(), runtime)
    ctypes.pythonapi.PyThreadState_Get.restype = ctypes.c_void_p
    thread = ctypes.pythonapi.PyThreadState_Get()
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(MARK_US / 1e6)
    try:
        memory = ctypes.string_at(runtime, mapping.stop - runtime)
    finally:
        sys.setswitchinterval(before_s)
    mark = MARK_US.to_bytes(WORD_BYTES, sys.byteorder) + thread.to_bytes(WORD_BYTES, sys.byteorder)
    at = memory.find(mark)
    if at < 0:
        raise NoLock("this version of Python keeps its lock elsewhere")
    return mapping.path, runtime + at + len(mark) - mapping.start


def address_in(pid: int) -> int:
    """Return the address of the lock's state in a process. Raises NoLock."""
    path, offset = position()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith(f" {path}"):
            return int(line.partition("-")[0], 16) + offset
    raise NoLock(f"process {pid} does not run {path}")


def scheduled_ns(pid: int) -> tuple[int, int]:
    """Return how long a process's threads have run, and how long they have waited for a core."""
    ran, waited = 0, 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended
            fields = path.read_text().split()
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
    return ran, waited


def watch(pid: int, until: int) -> float:
    """Return the share of the time with the lock held, until a descriptor is readable."""
    address, looks, held = address_in(pid), 0, 0
    before = scheduled_ns(pid)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        while not select.select([until], [], [], PAUSE_S)[0]:
            held += any(os.pread(memory.fileno(), STATE_BYTES, address))
            looks += 1
    ran, waited = (now - then for now, then in zip(scheduled_ns(pid), before, strict=True))
    return held / max(looks, 1) * max(ran, 1) / max(ran + waited, 1)


@contextlib.contextmanager
def watching(pid: int) -> Iterator[list[float]]:
    """Watch a process during the `with`; afterwards the list holds the share, if it is known."""
    found: list[float] = []
    command = [sys.executable, "-m", "bench.interpreter", str(pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        it.stdout.readline()  # it has begun, or has failed
        yield found
        found += map(float, it.communicate()[0].split())


def main() -> None:
    """Watch until the input ends, and print the share."""
    address_in(int(sys.argv[1]))
    print("watching", flush=True)
    print(watch(int(sys.argv[1]), sys.stdin.fileno()))


if __name__ == "__main__":
    main()
