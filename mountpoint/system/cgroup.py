"""The memory limit from the control groups of this process (cgroups(7)).

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


def memory_limit_bytes(proc: str = "/proc/self") -> int | None:
    """Return the smallest memory limit of this process in bytes; None without a limit.

    Version 1 has a large number for "no limit", which is returned unchanged.
    """
    try:
        lines = Path(proc, "cgroup").read_text("utf-8", "surrogateescape").splitlines()
        mounted = mounts(str(Path(proc, "mountinfo")))
    except OSError:
        return None
    limits: list[int] = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            for directory in _directories(path, mounted, v2=True):
                limits += filter(None, (_number(directory / name) for name in V2_LIMITS))
        elif "memory" in controllers.split(","):
            for directory in _directories(path, mounted, v2=False):
                limits += filter(None, (_number(directory / V1_LIMIT), _whole_limit(directory)))
    return min(limits, default=None)


def _directories(path: str, mounted: list[MountInfo], *, v2: bool) -> Iterator[Path]:
    """Yield the directory of a group and those of all groups above it that are mounted.

    A mount may show only a part of the hierarchy, from the group `root` on.
    """
    for mount in mounted:
        fits = (
            mount.kind == "cgroup2"
            if v2
            else (mount.kind == "cgroup" and "memory" in mount.options)
        )
        if not fits:
            continue
        group, root = PurePosixPath(path), PurePosixPath(mount.root)
        # A group outside of the mount or the namespace has a path with "..".
        below = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
        if ".." in below.parts:
            below = PurePosixPath()
        top = Path(mount.directory)
        yield top / below
        for parent in below.parents if below.parts else ():
            yield top / parent


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
