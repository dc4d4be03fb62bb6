"""This machine's memory, and what the C library does with ours.

A part is a piece of memory of several MiB that lives for a tenth of a second. By default
glibc takes each from the kernel and returns it, and each page of it is a fault: a seventh of
what a read costs (0.84 in place of 0.98 CPU-s/GB, 4 GiB with O_DIRECT, medians in one hour).
So it is told to keep what was freed, and to return it when nobody reads any more.

The interpreter has memory of its own for what is small, in pieces of 1 MiB. It returns one by
itself when nothing is left in it; one string of a few bytes is enough to hold it.
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

#: The largest that glibc takes.
LARGEST_MMAP_THRESHOLD = 32 << 20
NEVER_TRIM = (1 << 31) - 1

#: How often everybody looks at what nobody uses any more.
SWEEP_S = 1.0


def total_bytes() -> int:
    """Return the memory of this machine, or the limit of a control group where that is less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit_bytes = memory_limit_bytes()
    return installed if limit_bytes is None else min(installed, limit_bytes)


def resident_bytes() -> int:
    """Return how much memory this process has in use: its resident set, proc_pid_statm(5)."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def keep_freed() -> None:
    """Have freed memory kept. Before there are threads; without glibc nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, NEVER_TRIM)
        mallopt(M_ARENA_MAX, 1)  # what one thread frees, another one takes


def keep_private() -> None:
    """Keep this process's memory and environment from core files and from others' debuggers.

    There are keys in it. Only root can look at it from then on (PR_SET_DUMPABLE(2const),
    proc_pid(5)); ssh-agent does the same. What this process starts can be looked at.
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
    """Drop what the interpreter keeps for itself, here and there among what was freed.

    These are up to 4,096 names of attributes, because awscrt looks attributes up by a new string
    each time and the interpreter's cache of lookups keeps it, and up to 2,000 freed tuples of each
    length. After a million names they held 160 MB.
    """
    for name in ("_clear_internal_caches", "_clear_type_cache"):  # the first from 3.13 on
        if hasattr(sys, name):
            getattr(sys, name)()
            break
    gc.collect()


def start_sweeping(sweeps: Sequence[Callable[[], None]], stopping: threading.Event) -> None:
    """Call each of these every second, in a thread of its own, until `stopping` is set."""

    def run() -> None:
        while not stopping.wait(SWEEP_S):
            for sweep in sweeps:
                sweep()

    threading.Thread(target=run, name="sweep", daemon=True).start()
