"""Checks of the machine and of its directories."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from mountpoint.checks import machine
from mountpoint.config import (
    MIB,
    CacheConfig,
    ChangeConfig,
    ClientConfig,
    LogConfig,
    MountConfig,
)
from mountpoint.errors import MountError
from mountpoint.mount import preflight
from mountpoint.s3.crt.native import symbols
from tests.unit.checks.subjects import subject


@pytest.mark.parametrize(
    ("release", "channel", "outcome", "kib"),
    [
        ("6.18.1-amd64", True, "ok", 1024),
        ("4.20.0", True, "ok", 1024),
        ("4.19.0-26-amd64", True, "warning", 128),
        ("6.18.1-amd64", False, "warning", 128),
        ("strange", True, "warning", 128),
    ],
)
def test_kernel(
    monkeypatch: pytest.MonkeyPatch, release: str, channel: bool, outcome: str, kib: int
) -> None:
    """The size of reads depends on the kernel and the options."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    result = machine.kernel(subject(mount=MountConfig("", channel=channel)))
    assert (result.outcome, result.details["read_kib"]) == (outcome, kib)


def test_data_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning says why the interpreter receives the bytes."""
    assert machine.data_plane(subject()).outcome == "ok"
    off = machine.data_plane(subject(client=ClientConfig(native=False)))
    assert (off.outcome, off.hint) == ("warning", "omit --no-native")
    monkeypatch.setattr(symbols, "VERSIONS", frozenset({"1.2.3"}))
    other = machine.data_plane(subject())
    assert other.outcome == "warning"
    assert "it knows awscrt 1.2.3" in other.finding
    assert other.hint == "install awscrt 1.2.3 from PyPI"


def test_directory(tmp_path: Path) -> None:
    """No directory, an empty one, and one with files."""
    assert machine.directory(subject()).outcome == "skipped"
    assert machine.directory(subject(str(tmp_path))).outcome == "ok"
    (tmp_path / "file").touch()
    assert machine.directory(subject(str(tmp_path))).outcome == "warning"


def test_a_directory_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging mount is reported, and the other checks run."""
    monkeypatch.setattr(machine, "DIRECTORY_S", 0.05)
    hung = threading.Event()
    monkeypatch.setattr(preflight, "check_directory", lambda path: hung.wait())
    with pytest.raises(MountError, match="'/mnt' did not answer"):
        machine.directory(subject("/mnt"))
    hung.set()


def test_staging(tmp_path: Path) -> None:
    """The rules are those of mounting: existence, room, not inside the mount."""
    staging = ChangeConfig(staging_directory=str(tmp_path / "s"))
    with pytest.raises(MountError, match="does not exist"):
        machine.staging(subject(change=staging))
    (tmp_path / "s").mkdir()
    result = machine.staging(subject(change=staging))
    assert result.outcome == "ok"
    assert int(result.details["room_mib"]) > 0
    with pytest.raises(MountError, match="inside the mount"):
        machine.staging(subject(str(tmp_path), change=staging))
    small = ChangeConfig(staging_directory=str(tmp_path), staging_limit_bytes=MIB)
    with pytest.raises(MountError, match="too little space"):
        machine.staging(subject(change=small))
    assert list((tmp_path / "s").iterdir()) == []


def test_cache(tmp_path: Path) -> None:
    """The rules are those of mounting, and nothing is created."""
    path = tmp_path / "c"
    cache = CacheConfig(directory=str(path))
    result = machine.cache(subject(cache=cache))
    assert result.outcome == "ok"
    assert int(result.details["free_mib"]) > 0
    assert not path.exists()
    with pytest.raises(MountError, match="is in the directory of the mount"):
        machine.cache(subject(str(tmp_path), cache=cache))
    with pytest.raises(MountError, match="in which this user can write"):
        machine.cache(subject(cache=CacheConfig(directory=str(path / "no/such"))))
    (path / "mount-s3-cache").mkdir(parents=True)
    (path / "mount-s3-cache").chmod(0o755)
    with pytest.raises(MountError, match="can be entered by others"):
        machine.cache(subject(cache=cache))
    assert machine.cache(subject()).outcome == "skipped"


def test_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's destination; the check creates nothing, and reports an unusable directory."""
    inside = str(tmp_path / "log")
    assert machine.log(subject(log=LogConfig(directory=inside))).outcome == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "log").touch()
    with pytest.raises(MountError, match=r"cannot write a log in .*: File exists"):
        machine.log(subject(log=LogConfig(directory=inside)))
    assert machine.log(subject(log=LogConfig(no_log=True))).outcome == "skipped"
    assert machine.log(subject(log=LogConfig(foreground=True))).finding == "standard error"
    for module in ("checks.machine", "log.setup"):
        monkeypatch.setattr(f"mountpoint.{module}.SYSLOG_SOCKET", str(tmp_path / "log"))
    assert machine.log(subject()).finding == "syslog"
    for module in ("checks.machine", "log.setup"):
        monkeypatch.setattr(f"mountpoint.{module}.SYSLOG_SOCKET", str(tmp_path / "none"))
    assert machine.log(subject()).outcome == "warning"


def test_journal(tmp_path: Path) -> None:
    """A mount works without the journal, so it is a warning; a read-only mount needs none."""
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    assert machine.uploads_journal(subject(environ=environ)).outcome == "ok"
    (tmp_path / "mount-s3").touch()
    result = machine.uploads_journal(subject(environ=environ))
    assert result.outcome == "warning"
    assert "mount-s3ctl cleanup" in result.finding
    read_only = subject(environ=environ, mount=MountConfig("", read_only=True))
    assert machine.uploads_journal(read_only).outcome == "skipped"
    assert list(tmp_path.iterdir()) == [tmp_path / "mount-s3"]
