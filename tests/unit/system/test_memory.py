"""The size of memory, and the release of freed memory."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mountpoint.system import memory
from tests.unit.fake_client import SAFE_S

INSTALLED = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

#: Prints RSS in MiB after freeing 200 MiB: by default, kept, and returned.
SCRIPT = """
import sys
from mountpoint.system import memory
def rss():
    status = open("/proc/self/status").read()
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10
if sys.argv[1] != "plain":
    memory.keep_freed(int(sys.argv[1]) << 20)
before = rss()
parts = [bytes([1]) * (8 << 20) for _ in range(25)]
del parts
freed = rss()
memory.give_back()
print(freed - before, rss() - before)
"""


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, INSTALLED), (104857600, 104857600), (9223372036854771712, INSTALLED)],
)
def test_total(monkeypatch: pytest.MonkeyPatch, limit: int | None, expected: int) -> None:
    """The machine's memory, or the limit of a control group if that is less."""
    monkeypatch.setattr(memory, "memory_limit_bytes", lambda: limit)
    assert memory.total_bytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize(("how", "kept"), [("plain", False), ("1024", True), ("128", False)])
def test_freed_memory(how: str, kept: bool) -> None:
    """The C library keeps freed memory until it must return it, but only if there is plenty."""
    shown = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    ).stdout
    freed, given_back = map(int, shown.split())
    assert (freed > 150) == kept
    assert given_back < 50


def test_leftovers() -> None:
    """The interpreter's attribute cache does not keep names of look-ups."""
    name = "".join(["drop_", "leftovers"])  # not the module's own string
    before = sys.getrefcount(name)
    memory.drop_leftovers()
    assert getattr(Path, name, None) is None
    assert sys.getrefcount(name) > before
    memory.drop_leftovers()
    assert sys.getrefcount(name) == before


def test_sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread calls all sweeps repeatedly, until the mount goes away."""
    monkeypatch.setattr(memory, "SWEEP_S", 0.001)
    swept: list[int] = []
    stopping = threading.Event()
    memory.start_sweeping([lambda: swept.append(1), lambda: swept.append(2)], stopping)
    until_s = time.monotonic() + SAFE_S
    while swept[:4] != [1, 2, 1, 2]:
        assert time.monotonic() < until_s
        time.sleep(0.001)
    stopping.set()
    while any(thread.name == "sweep" for thread in threading.enumerate()):
        assert time.monotonic() < until_s
        time.sleep(0.001)
