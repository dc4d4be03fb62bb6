"""The smallest limits of the control groups around a process."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mountpoint.system.cgroup import cpu_limit, memory_limit_bytes
from mountpoint.system.mounts import mounts

MIB = 1 << 20
NO_LIMIT = 9223372036854771712


def machine(
    folder: Path, groups: str, mountinfo: str, limits: Mapping[str, object] | None = None
) -> str:
    """Make the files of a machine: its /proc for this process, and its groups.

    In `mountinfo` the folder is TOP, below which the limits are. Returns the folder of /proc.
    """
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text(mountinfo.replace("TOP", str(folder)))
    for name, limit in (limits or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    return str(proc)


V2 = "29 23 0:26 / TOP/cg rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / TOP/cg/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / TOP/cg/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"cg/a.slice/m.service/memory.max": "max"}, None),
        ({"cg/a.slice/m.service/memory.max": 400 * MIB}, 400 * MIB),
        ({"cg/a.slice/m.service/memory.high": 300 * MIB}, 300 * MIB),
        ({"cg/a.slice/memory.max": 200 * MIB}, 200 * MIB),
        ({"cg/memory.max": 100 * MIB}, 100 * MIB),
        (
            {
                "cg/a.slice/m.service/memory.max": 400 * MIB,
                "cg/a.slice/memory.high": 150 * MIB,
                "cg/a.slice/memory.max": 200 * MIB,
                "cg/b.slice/memory.max": MIB,
            },
            150 * MIB,
        ),
    ],
)
def test_version_2(tmp_path: Path, limits: Mapping[str, object], expected: int | None) -> None:
    """The smallest limit from the process's own group up to the root counts."""
    proc = machine(tmp_path, "0::/a.slice/m.service\n", V2, limits)
    assert memory_limit_bytes(proc) == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"cg/memory/a/b/memory.limit_in_bytes": NO_LIMIT}, NO_LIMIT),
        ({"cg/memory/a/b/memory.limit_in_bytes": 400 * MIB}, 400 * MIB),
        (
            {
                "cg/memory/a/b/memory.limit_in_bytes": NO_LIMIT,
                "cg/memory/a/memory.limit_in_bytes": 200 * MIB,
                "cg/cpu/a/b/memory.limit_in_bytes": MIB,
            },
            200 * MIB,
        ),
        (
            {
                "cg/memory/a/b/memory.limit_in_bytes": 400 * MIB,
                "cg/memory/a/b/memory.stat": f"cache 1\nhierarchical_memory_limit {50 * MIB}",
            },
            50 * MIB,
        ),
    ],
)
def test_version_1(tmp_path: Path, limits: Mapping[str, object], expected: int) -> None:
    """The same with the hierarchy of version 1, perhaps beside one of version 2."""
    groups = "4:memory,pids:/a/b\n1:cpu:/\n0::/\n"
    assert memory_limit_bytes(machine(tmp_path, groups, V1 + V2, limits)) == expected


@pytest.mark.parametrize(
    ("root", "group", "limit"),
    [
        ("/docker/1", "/docker/1/sub", "cg/sub/memory.max"),  # a mount of a part
        ("/docker/1", "/docker/1", "cg/memory.max"),
        ("/", "/../outside", "cg/memory.max"),  # outside of the cgroup namespace
        ("/docker/1", "/elsewhere", "cg/memory.max"),
        ("/..", "/", "cg/memory.max"),
        ("/docker/1", "/docker/12", "cg/memory.max"),
    ],
)
def test_only_a_part_is_seen(tmp_path: Path, root: str, group: str, limit: str) -> None:
    """In a container the limit is that of the mounted groups."""
    mountinfo = V2.replace(" / TOP", f" {root} TOP")
    proc = machine(tmp_path, f"0::{group}\n", mountinfo, {limit: 100 * MIB, "memory.max": 1})
    assert memory_limit_bytes(proc) == 100 * MIB


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"cg/a.slice/m.service/cpu.max": "max 100000"}, None),
        ({"cg/a.slice/m.service/cpu.max": "250000 100000"}, 2.5),
        ({"cg/a.slice/m.service/cpu.max": "max 100000", "cg/a.slice/cpu.max": "50000 100000"}, 0.5),
        ({"cg/a.slice/m.service/cpu.max": "80000 20000", "cg/cpu.max": "800000 100000"}, 4.0),
        ({"cg/a.slice/m.service/cpu.max": "damaged"}, None),
    ],
)
def test_processors(tmp_path: Path, limits: Mapping[str, object], expected: float | None) -> None:
    """The smallest quota from the process's own group up to the root counts."""
    assert cpu_limit(machine(tmp_path, "0::/a.slice/m.service\n", V2, limits)) == expected


@pytest.mark.parametrize(("quota", "expected"), [(-1, None), (150_000, 1.5)])
def test_processors_in_version_1(tmp_path: Path, quota: int, expected: float | None) -> None:
    """A quota of -1 is no limit."""
    limits = {
        "cg/cpu/a/cpu.cfs_quota_us": -1,
        "cg/cpu/a/cpu.cfs_period_us": 100_000,
        "cg/cpu/a/b/cpu.cfs_quota_us": quota,
        "cg/cpu/a/b/cpu.cfs_period_us": 100_000,
    }
    groups = "4:memory,pids:/a/b\n1:cpu,cpuacct:/a/b\n0::/\n"
    assert cpu_limit(machine(tmp_path, groups, V1 + V2, limits)) == expected


def test_nothing_is_known(tmp_path: Path) -> None:
    """Without control groups, or without /proc, there is no limit."""
    assert memory_limit_bytes(machine(tmp_path, "0::/a\n", "")) is None
    assert cpu_limit("/nowhere") is None
    assert memory_limit_bytes(str(tmp_path / "missing")) is None


@pytest.fixture
def group() -> Iterator[Path]:
    """A group of this machine with a group in it, whose parent has a limit of 300 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can make control groups")
    kinds = {
        "memory.max": [each.directory for each in mounts() if each.kind == "cgroup2"],
        "memory.limit_in_bytes": [
            each.directory
            for each in mounts()
            if each.kind == "cgroup" and "memory" in each.options
        ],
    }
    for name, directories in kinds.items():
        for directory in directories:
            parent = Path(directory, f"mount-s3-test-{os.getpid()}")
            child = parent / "child"
            try:
                parent.mkdir()
                child.mkdir()
                (parent / name).write_text(str(300 * MIB))
            except OSError:
                for each in (child, parent):
                    if each.is_dir():
                        each.rmdir()
                continue
            yield child
            child.rmdir()
            parent.rmdir()
            return
    pytest.skip("this machine does not support memory limits of control groups")


@pytest.mark.slow
def test_real_groups(group: Path) -> None:
    """A process in a group without a limit has the limit of the outer group."""
    script = (
        "import os, sys\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from mountpoint.system.memory import total_bytes\n"
        "from mountpoint.cli.settings import memory_bytes\n"
        "print(total_bytes(), memory_bytes(None, 8))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, group / "cgroup.procs"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [str(300 * MIB), str(128 * MIB)]
