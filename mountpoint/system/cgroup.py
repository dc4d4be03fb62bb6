"""The limits of memory and processors from the control groups of this process (cgroups(7)).

A limit applies to a group and all groups below it. So the limit of a systemd slice, or of a
container around this process, counts as much as that of its own group: the smallest on the path to
the root of the hierarchy applies.

Limits of groups above the root of a cgroup namespace are invisible in version 2; version 1 includes
them in `memory.stat`.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mountpoint.system.mounts import MountInfo, mounts

#: `memory.high` does not kill processes, but they hardly exceed it.
V2_LIMITS = ("memory.max", "memory.high")
V1_LIMIT = "memory.limit_in_bytes"
#: In `memory.stat`: the smallest limit on the path to the root, including unmounted groups.
V1_WHOLE_LIMIT = "hierarchical_memory_limit"

#: Microseconds of CPU time, and of the period in which they may be used.
V2_CPU = ("cpu.max",)
V1_CPU = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def memory_limit_bytes(proc: str = "/proc/self") -> int | None:
    """Return the smallest memory limit of this process in bytes; None without a limit.

    Version 1 has a large number for "no limit", which is returned unchanged.
    """
    limits: list[int] = []
    for directory in _groups(proc, "memory", v2=True):
        limits += filter(None, (_number(directory / name) for name in V2_LIMITS))
    for directory in _groups(proc, "memory", v2=False):
        limits += filter(None, (_number(directory / V1_LIMIT), _whole_limit(directory)))
    return min(limits, default=None)


def cpu_limit(proc: str = "/proc/self") -> float | None:
    """Return the smallest limit of this process in processors; None without a limit."""
    limits: list[float] = []
    for version_2, names in ((True, V2_CPU), (False, V1_CPU)):
        for directory in _groups(proc, "cpu", v2=version_2):
            limits += filter(None, [_cores([directory / name for name in names])])
    return min(limits, default=None)


def _groups(proc: str, controller: str, *, v2: bool) -> Iterator[Path]:
    """Yield the directories of the groups that limit a process, in one version's hierarchy."""
    try:
        lines = Path(proc, "cgroup").read_text("utf-8", "surrogateescape").splitlines()
        mounted = mounts(str(Path(proc, "mountinfo")))
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        named = number == "0" and not controllers if v2 else controller in controllers.split(",")
        if named:
            fitting = [
                mount
                for mount in mounted
                if mount.kind == ("cgroup2" if v2 else "cgroup")
                and (v2 or controller in mount.options)
            ]
            yield from _directories(path, fitting)


def _directories(path: str, mounted: list[MountInfo]) -> Iterator[Path]:
    """Yield the directory of a group and those of all groups above it that are mounted.

    A mount may show only a part of the hierarchy, from the group `root` on.
    """
    for mount in mounted:
        group, root = PurePosixPath(path), PurePosixPath(mount.root)
        # A group outside of the mount or the namespace has a path with "..".
        below = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
        if ".." in below.parts:
            below = PurePosixPath()
        top = Path(mount.directory)
        yield top / below
        for parent in below.parents if below.parts else ():
            yield top / parent


def _cores(paths: list[Path]) -> float | None:
    """Return the processors that a quota and a period in files allow; None without a limit."""
    try:
        quota_us, period_us = map(int, " ".join(path.read_text("ascii") for path in paths).split())
    except (OSError, ValueError):  # "max"
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _number(path: Path) -> int | None:
    """Return the limit in a file; None if there is no such file or no limit."""
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):  # "max"
        return None


def _whole_limit(directory: Path) -> int | None:
    try:
        lines = (directory / "memory.stat").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return None
    found = (line.split() for line in lines)
    return next((int(value) for name, value in found if name == V1_WHOLE_LIMIT), None)
