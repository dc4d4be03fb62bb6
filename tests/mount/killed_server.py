"""A server that is killed, and started again with what it has stored."""

import os
import signal
import subprocess
from pathlib import Path

from tests.mount.mounting import eventually
from tools.processes import end_process_group
from tools.servers import SeaweedFS


class KilledServer:
    """SeaweedFS, which can be killed. Call `end` at the end."""

    def __init__(self, server: SeaweedFS) -> None:
        pid = server.pid_if_running
        assert pid is not None
        proc = Path(f"/proc/{pid}")
        # constants
        self._command = proc.joinpath("cmdline").read_bytes().split(b"\0")[:-1]
        pairs = proc.joinpath("environ").read_bytes().split(b"\0")[:-1]
        self._environment = dict(pair.split(b"=", 1) for pair in pairs)
        self._folder = Path(os.readlink(proc / "cwd"))
        # mutable
        self._pid = pid
        self._process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """Kill it."""
        os.killpg(self._pid, signal.SIGKILL)
        if self._process is None:  # a child of the one that began
            eventually(lambda: not Path(f"/proc/{self._pid}/exe").exists())
        else:
            self._process.wait()

    def start(self) -> None:
        """Start it again. It answers a moment later."""
        with (self._folder / "log-again").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid = self._process.pid

    def end(self) -> None:
        """End what was started again."""
        if self._process is not None:
            end_process_group(self._process.pid, self._process)
