"""Files whose writing process runs another program, or starts one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import mounted

pytestmark = pytest.mark.mount

EXEC = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)  # with O_CLOEXEC, as ever in Python
os.write(file, b"123")
if os.fork() == 0:
    os.execv("/bin/true", ["true"])
os.wait()
os.write(file, b"45")
os.close(file)
"""


def test_a_child_becomes_another_program(store: Store, folder: Path) -> None:
    """The closes of execve in a child end neither the file nor the mount."""
    with mounted(store, folder, "--prefix", "exec/") as mount:
        path, pid = mount.path / "a", mount.pid
        writer = subprocess.Popen([sys.executable, "-c", EXEC, path])
        try:
            assert writer.wait(20) == 0
        except subprocess.TimeoutExpired:
            os.kill(pid, signal.SIGKILL)  # or the child cannot be examined
            raise
        assert path.read_bytes() == b"12345"
