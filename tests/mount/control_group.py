"""A control group that bounds the memory of a mount, as a container's does."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.system.mounts import mounts
from tests.mount.mounting import eventually, run_anew


class ControlGroup:
    """A group of processes that may use `limit_bytes` of memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(
        self, *arguments: str | Path, env: dict[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        """Run mount-s3 in the group. See mounting.run."""
        enter = f'echo $$ > {self.path}/cgroup.procs && exec "$0" "$@"'
        return run_anew(*arguments, env=env, before=("sh", "-c", enter))

    @property
    def refusals(self) -> int:
        """How often the kernel had no memory for a process of the group, and killed one."""
        name = "memory.oom_control" if self._is_v1 else "memory.events"
        lines = dict(line.split() for line in (self.path / name).read_text().splitlines())
        return int(lines["oom_kill"])

    @property
    def _is_v1(self) -> bool:
        return (self.path / "memory.limit_in_bytes").exists()


@contextlib.contextmanager
def control_group(name: str, limit_bytes: int) -> Iterator[ControlGroup]:
    """Make a group with a limit, without swap. Skips the test where that is not possible."""
    group = _root() / f"mount-s3-test-{name}-{time.time_ns()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"control groups cannot be made: {error.strerror}")
    try:
        v1 = (group / "memory.limit_in_bytes").exists()
        (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit_bytes))
        with contextlib.suppress(OSError):  # machines without swap may not have it
            swap = "memory.memsw.limit_in_bytes" if v1 else "memory.swap.max"
            (group / swap).write_text(str(limit_bytes if v1 else 0))
        yield ControlGroup(group)
    finally:
        # Its processes have ended, or will soon.
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def _root() -> Path:
    """The root of the hierarchy that bounds memory."""
    for mount in mounts():
        if mount.kind == "cgroup" and "memory" in mount.options:
            return Path(mount.directory)
    for mount in mounts():
        if mount.kind == "cgroup2":
            controllers = Path(mount.directory, "cgroup.subtree_control")
            if "memory" in controllers.read_text().split():
                return Path(mount.directory)
    pytest.skip("no control group bounds memory here")
