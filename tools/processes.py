"""Ports and processes of the servers that tools start.

`Ports` finds ports for a server that cannot choose its own. After their release another program may
take one before the server binds it. That is rare, and the caller tries again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

STOP_TIMEOUT_S = 15.0
POLL_INTERVAL_S = 0.05


class Ports:
    """Free loopback ports, held by bound sockets until just before the server takes them."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def one(self) -> int:
        """Reserve a port that the kernel chooses."""
        return self._hold(0)

    def pair(self, distance: int) -> tuple[int, int]:
        """Reserve ports `p` and `p + distance`."""
        while True:
            upper = self.one()
            with contextlib.suppress(OSError):
                return self._hold(upper - distance), upper

    def release(self) -> None:
        """Release all ports; the caller then starts the server."""
        for held in self._held:
            held.close()
        self._held.clear()

    def _hold(self, port: int) -> int:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            held.close()
            raise
        self._held.append(held)
        return int(held.getsockname()[1])


def end_process_group(
    pid: int, process: subprocess.Popen[bytes] | None = None, *, at_once: bool = False
) -> None:
    """End the process group of a server: SIGTERM, and SIGKILL if it takes too long, or at once.

    The parent process passes `process`, to collect the exit code. Without it the function waits
    until the process is gone.
    """

    def ended() -> bool:
        if process is not None:
            return process.poll() is not None
        return start_ticks(pid) is None

    for number in (signal.SIGKILL,) if at_once else (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            if ended():
                # The leader is gone; kill the processes that it started.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                return
            time.sleep(POLL_INTERVAL_S)


def start_ticks(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot, or None if it has ended.

    Number and start time together identify a process, because numbers are reused.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field, the name, may have spaces and parentheses: see proc_pid_stat(5).
    fields = stat.rpartition(")")[2].split()
    # A container whose first process collects no exit codes keeps ended ones as zombies.
    return None if fields[0] == "Z" else int(fields[19])
