"""The share of time for which a process holds the interpreter's lock."""

import subprocess
import sys
import time

import pytest

from bench import interpreter

PROGRAM = """
import time
print(flush=True)
while True:
    end = time.perf_counter() + {busy_s}
    while time.perf_counter() < end:
        pass
    time.sleep({idle_s})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("busy_s", "idle_s", "low", "high"),
    [(1.0, 0.0, 0.05, 1.0), (0.0, 1.0, 0.0, 0.02)],
)
def test_share(busy_s: float, idle_s: float, low: float, high: float) -> None:
    """A process that computes holds the lock; one that sleeps does not."""
    program = PROGRAM.format(busy_s=busy_s, idle_s=idle_s)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            with interpreter.watching(process.pid) as found:
                time.sleep(0.5)
        finally:
            process.kill()
    if not found:
        pytest.skip("this process may not read the memory of others, or Python is another one")
    assert low <= found[0] <= high


def test_another_program() -> None:
    """A process with another interpreter, or none, has no known lock; the rest goes on."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with interpreter.watching(process.pid) as found:
                pass
        finally:
            process.kill()
    assert found == []


def test_mappings() -> None:
    """Memory that follows that of a file without a path of its own belongs to it."""
    maps = (
        "00001000-00002000 r--p 00000000 08:01 7 /lib/libpython.so\n"
        "00002000-00003000 rw-p 00001000 08:01 7 /lib/libpython.so\n"
        "00003000-00004000 rw-p 00000000 00:00 0 \n"
        "00009000-0000a000 rw-p 00000000 00:00 0 \n"
        "0000b000-0000c000 rw-p 00000000 00:00 0 [heap]\n"
    )
    assert interpreter.mapping_of(maps, 0x2800) == interpreter.Mapping(
        "/lib/libpython.so", 0x1000, 0x3000
    )
    assert interpreter.mapping_of(maps, 0x3800).stop == 0x4000
    for address in (0x9800, 0xB800, 0x8000):
        with pytest.raises(interpreter.NoLock):
            interpreter.mapping_of(maps, address)
