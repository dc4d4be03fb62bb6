"""The kernel's information about mounts, and the read-ahead of a file."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mountpoint.system import kernel
from mountpoint.system.kernel import (
    LOOK_READ_AHEAD_KB,
    PIECES_READ_AHEAD_KB,
    READ_AHEAD_KB,
    ReadAhead,
)


class Setting:
    """A mount on /mnt whose setting is an ordinary file."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "read_ahead_kb"
        self.writes = 0
        monkeypatch.setattr(kernel, "mount_points", lambda: {"/mnt": "0:42"})
        monkeypatch.setattr(kernel, "Path", self._path)
        self.read_ahead = ReadAhead("/mnt")

    def _path(self, path: str) -> "Setting":
        assert path == "/sys/class/bdi/0:42/read_ahead_kb"
        return self

    def write_text(self, text: str, encoding: str) -> None:
        self.writes += 1
        self.file.write_text(text, encoding)

    def after(self, key: bytes, *, looked_at: bool = False) -> int:
        """Open a file; return the setting afterwards."""
        assert self.read_ahead.set_for(key, looked_at) == looked_at
        return int(self.file.read_text())


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """A mount's setting."""
    return Setting(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "key", [b"big.bin", b"a/parquet", b"zip", b"x.zip/file", b"a.parquet.tmp", b"a.", b"\xff"]
)
def test_most_files(setting: Setting, key: bytes) -> None:
    """The kernel reads far ahead."""
    assert setting.after(key) == READ_AHEAD_KB


@pytest.mark.parametrize("key", [b"a/b.parquet", b"A.ZIP", b"x.tar.7z", b".h5"])
def test_files_that_are_read_in_pieces(setting: Setting, key: bytes) -> None:
    """These formats keep the kernel's default."""
    assert setting.after(key) == PIECES_READ_AHEAD_KB


@pytest.mark.parametrize("key", [b"a", b"b.parquet"])
def test_files_that_are_looked_at(setting: Setting, key: bytes) -> None:
    """If little of a file is likely to be read, the kernel does not read ahead."""
    assert setting.after(b"before") == READ_AHEAD_KB
    for _ in range(2):
        assert setting.after(key, looked_at=True) == LOOK_READ_AHEAD_KB
    assert setting.after(b"behind") == READ_AHEAD_KB


def test_written_only_when_it_changes(setting: Setting) -> None:
    """Opening many files of the same kind costs nothing."""
    for key in [b"a", b"b", b"c.zip", b"d.zip", b"e"]:
        setting.after(key)
    assert setting.writes == 3


def test_the_mount_is_not_asked_for_its_path(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that opens a file may be the only one that answers the kernel."""

    def never(*args: object, **options: object) -> None:
        raise AssertionError("the path is looked up")

    monkeypatch.setattr(os, "lstat", never)
    assert setting.after(b"a") == READ_AHEAD_KB


def test_refused_once_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the setting cannot be written, one debug line says so, and it stays unchanged."""
    asked = []

    def nothing() -> dict[str, str]:
        asked.append(1)
        return {}

    monkeypatch.setattr(kernel, "mount_points", nothing)
    read_ahead = ReadAhead("/mnt")
    with capture_logs() as lines:
        for _ in range(3):
            assert not read_ahead.set_for(b"a", True)
    assert len(asked) == 1
    assert [line["log_level"] for line in lines] == ["debug"]


def test_mount_points() -> None:
    """The root and /proc are mount points, and the device of an ordinary one matches stat(2)."""
    found = kernel.mount_points()
    assert "/" in found
    device = os.stat("/proc").st_dev
    assert found["/proc"] == f"{os.major(device)}:{os.minor(device)}"
