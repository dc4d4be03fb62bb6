"""Memory: this machine's size, and how the C library and the interpreter return freed memory.

A part is a block of several MiB that lives for a tenth of a second. By default glibc takes each
from the kernel and returns it, with a page fault for each page: a seventh of the cost of a read
(0.98 CPU-s/GB, 0.84 without; 4 GiB with O_DIRECT, medians in one hour). So glibc is told to keep
freed memory, and to return it when no program reads any more. Where memory is scarce it is not.

The interpreter manages small objects itself, in arenas of 1 MiB. It frees an arena only once it is
empty; one string of a few bytes is enough to keep it.
"""

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from mountpoint.system.cgroup import memory_limit_bytes

#: malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

#: sys/prctl.h
PR_SET_DUMPABLE = 4

#: The largest value that glibc accepts.
LARGEST_MMAP_THRESHOLD = 32 << 20
NEVER_TRIM = (1 << 31) - 1
#: With less memory for file data, freed memory goes back at once: in a container of 256 MiB, reads
#: found none after writes.
PLENTY_BYTES = 512 << 20
#: Not glibc's default, because that grows with the blocks that are freed.
SMALL_MMAP_THRESHOLD = 256 << 10

#: Seconds between sweeps of expired data.
SWEEP_S = 1.0


def total_bytes() -> int:
    """Return this machine's memory in bytes, or the control group's limit if that is less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit_bytes = memory_limit_bytes()
    return installed if limit_bytes is None else min(installed, limit_bytes)


def resident_bytes() -> int:
    """Return this process's resident set in bytes: proc_pid_statm(5)."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def keep_freed(memory_bytes: int) -> None:
    """Make glibc keep freed memory, if file data may take much: `memory_bytes`.

    Call it before threads start; other libcs ignore it.
    """
    plenty = memory_bytes >= PLENTY_BYTES
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD if plenty else SMALL_MMAP_THRESHOLD)
        if plenty:
            mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
        mallopt(M_ARENA_MAX, 1)  # one thread reuses memory that another one freed


def keep_private() -> None:
    """Hide this process's memory and environment from core files and other users' debuggers.

    They contain keys. From then on only root can read them (PR_SET_DUMPABLE(2const), proc_pid(5));
    ssh-agent does the same. Child processes stay readable.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_DUMPABLE, ctypes.c_ulong(0))


def give_back() -> None:
    """Return freed memory to the system."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def drop_leftovers() -> None:
    """Drop the interpreter's own caches, which are scattered across freed memory.

    They hold up to 4,096 attribute names, because awscrt looks up attributes by a new string each
    time and the interpreter's method cache keeps it, and up to 2,000 freed tuples of each length.
    After a million names they held 160 MB.
    """
    for name in ("_clear_internal_caches", "_clear_type_cache"):  # the first since 3.13
        if hasattr(sys, name):
            getattr(sys, name)()
            break
    gc.collect()


def start_sweeping(sweeps: Sequence[Callable[[], None]], stopping: threading.Event) -> None:
    """Call each function every second, in its own thread, until `stopping` is set."""

    def run() -> None:
        while not stopping.wait(SWEEP_S):
            for sweep in sweeps:
                sweep()

    threading.Thread(target=run, name="sweep", daemon=True).start()
