"""The requirements of a mount: the parts that need neither FUSE nor a server."""

import os
from pathlib import Path

import pytest

from mountpoint.config import MountConfig
from mountpoint.errors import MountError
from mountpoint.mount import preflight
from mountpoint.mount.preflight import CAP_SYS_ADMIN


def status(monkeypatch: pytest.MonkeyPatch, **numbers: int) -> None:
    """Replace the content of /proc/self/status."""
    known = {"CapEff": 0, "CapBnd": CAP_SYS_ADMIN, "NoNewPrivs": 0} | numbers
    monkeypatch.setattr(preflight, "_status", lambda name, unknown=0: known[name])


def test_proc_is_read_as_it_is() -> None:
    """The numbers of this process have the expected form."""
    assert preflight._status("CapBnd") > 0
    assert preflight._status("NoNewPrivs", 7) in (0, 1)
    assert preflight._status("NoSuchLine", 7) == 7


def test_processes_that_may_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may mount by itself, or by a setuid program."""
    status(monkeypatch, CapEff=CAP_SYS_ADMIN, CapBnd=0, NoNewPrivs=1)
    preflight.check_privileges()
    status(monkeypatch)
    preflight.check_privileges()


def test_processes_that_may_not_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this process nor a setuid program may mount."""
    status(monkeypatch, NoNewPrivs=1)
    with pytest.raises(MountError, match="no_new_privs"):
        preflight.check_privileges()
    status(monkeypatch, CapBnd=~CAP_SYS_ADMIN)
    with pytest.raises(MountError, match="CAP_SYS_ADMIN"):
        preflight.check_privileges()


def test_a_directory_that_fusermount_would_refuse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only users who mount with fusermount need write permission in the directory."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    status(monkeypatch, CapEff=CAP_SYS_ADMIN)
    preflight.check_directory(str(tmp_path))
    status(monkeypatch)
    with pytest.raises(MountError, match="only root may mount there") as caught:
        preflight.check_directory(str(tmp_path))
    assert caught.value.hint == f"allow it: chmod u+w {tmp_path}"
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(MountError, match="only root may mount there") as caught:
        preflight.check_directory(str(tmp_path))
    assert caught.value.hint == "choose a directory of your own"


def test_fusermount_is_looked_for_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root needs fusermount only for --auto-unmount."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    preflight.check_fusermount(MountConfig("/mnt"))
    with pytest.raises(MountError, match="fusermount is missing"):
        preflight.check_fusermount(MountConfig("/mnt", auto_unmount=True))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MountError, match="fusermount is missing"):
        preflight.check_fusermount(MountConfig("/mnt"))


def test_a_directory_that_can_be_made_can_be_written(tmp_path: Path) -> None:
    """A missing directory counts as the one above it, and nothing is created."""
    assert preflight.why_unwritable(str(tmp_path)) is None
    assert preflight.why_unwritable(str(tmp_path / "a" / "b")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file is in the way, the directory is not ours, or the link is broken."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    assert preflight.why_unwritable(str(tmp_path / "file")) == "File exists"
    assert preflight.why_unwritable(str(tmp_path / "file" / "log")) == "Not a directory"
    assert preflight.why_unwritable(str(tmp_path / "link")) == "No such file or directory"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert preflight.why_unwritable(str(tmp_path / "log")) == "Permission denied"
