"""Which mounts count as dead and as this user's own, and how they are removed."""

import os
import subprocess
from pathlib import Path

import pytest

from mountpoint.errors import DISCONNECTED, MountError
from mountpoint.mount import dead_mount
from mountpoint.system.kernel import TYPE
from mountpoint.system.mounts import MountInfo

OWN = f"user_id={os.geteuid()}"
DEAD = OSError(DISCONNECTED, "not connected")


def mount(
    monkeypatch: pytest.MonkeyPatch, path: Path, answer: OSError | None, *kinds: tuple[str, str]
) -> None:
    """Mount these types, with an option each, on one directory, which answers so."""
    made = [MountInfo("0:1", "/", str(path), kind, ("rw", option)) for kind, option in kinds]
    monkeypatch.setattr(dead_mount, "mounts", lambda: made)
    monkeypatch.setattr(dead_mount, "failure", lambda directory, within_s: answer)


@pytest.mark.parametrize(
    ("kinds", "answer", "dead"),
    [
        ([(TYPE, OWN)], DEAD, True),
        ([("fuse.sshfs", OWN), (TYPE, OWN)], DEAD, True),
        ([(TYPE, OWN), ("fuse.sshfs", OWN)], DEAD, False),
        ([(TYPE, OWN)], None, False),
        ([(TYPE, OWN)], TimeoutError(0, "it hangs"), False),
        ([(TYPE, f"user_id={os.geteuid() + 1}")], DEAD, False),
        ([(TYPE, f"{OWN}0")], DEAD, False),
        ([], DEAD, False),
    ],
)
def test_whose_mount_it_is(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kinds: list[tuple[str, str]],
    answer: OSError | None,
    dead: bool,
) -> None:
    """Only this program's, of this user, that does not answer; the last one on a directory."""
    mount(monkeypatch, tmp_path, answer, *kinds)
    assert dead_mount.is_dead(str(tmp_path)) is dead


def test_a_mount_that_cannot_be_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both programs are tried, and the last one's reason is given."""
    mount(monkeypatch, tmp_path, DEAD, (TYPE, OWN))
    tried: list[str] = []

    def run(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        tried.append(command[0])
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} says no\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MountError, match="cannot be unmounted: fusermount says no"):
        dead_mount.remove(str(tmp_path))
    assert tried == ["umount", "fusermount"]
