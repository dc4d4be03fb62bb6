"""Directories that must be this user's own."""

import os
from pathlib import Path

import pytest

from mountpoint.system.private import ENTERED, WRITTEN, make_private


def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    """Only its owner can enter it; a second time changes nothing."""
    directory = tmp_path / "a" / "b"
    for _ in range(2):
        make_private(directory)
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("mode", "forbidden", "refused"),
    [
        (0o755, ENTERED, True),
        (0o701, ENTERED, True),
        (0o755, WRITTEN, False),
        (0o775, WRITTEN, True),
        (0o1777, WRITTEN, True),
    ],
)
def test_modes(tmp_path: Path, mode: int, forbidden: int, refused: bool) -> None:
    """Others must not enter the directory, or not change it."""
    tmp_path.chmod(mode)
    if refused:
        with pytest.raises(PermissionError, match="other users can"):
            make_private(tmp_path, forbidden)
    else:
        make_private(tmp_path, forbidden)


def test_links(tmp_path: Path) -> None:
    """A symbolic link is refused, even to a directory of this user."""
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("own")
    with pytest.raises(NotADirectoryError, match="symbolic link"):
        make_private(tmp_path / "link")


def test_other_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of another user is refused, even if it has the right mode."""
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(PermissionError, match=f"belongs to another user .{owner}."):
        make_private(tmp_path)
