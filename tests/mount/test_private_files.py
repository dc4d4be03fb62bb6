"""What a mount leaves on this machine belongs to its user alone, whatever the umask."""

import os
import stat
from pathlib import Path

import pytest

from mountpoint.mount.control import SUFFIX, socket_directory
from tests.conftest import Store
from tests.mount.mounting import eventually, foreground
from tools.mounting import serving_process

pytestmark = pytest.mark.mount

MIB = 1 << 20


def modes(folder: Path) -> dict[str, int]:
    """Return the permissions of everything below a folder, and of the folder itself."""
    found = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in found}


def test_modes_and_owners(store: Store, folder: Path) -> None:
    """Journals, cache, log, staged files and socket: 0700 and 0600, although the umask is 0."""
    store.put("private/file", b"x" * MIB)
    for name in ("cache", "staging"):
        (folder / name).mkdir()
    environ = {"XDG_STATE_HOME": str(folder / "state")}
    options = ["--cache", str(folder / "cache"), "--log-directory", str(folder / "log")]
    options += ["--staged-writes", str(folder / "staging"), "--allow-overwrite", "--debug"]
    umask = ["sh", "-c", 'umask 0; exec "$@"', "sh"]
    with foreground(store, folder, *options, before=umask, environ=environ) as (_, path):
        assert (path / "private" / "file").read_bytes() == b"x" * MIB
        (own,) = (folder / "staging").iterdir()
        with (path / "private" / "staged").open("wb") as file:
            file.write(b"y" * MIB)
            file.flush()
            eventually(lambda: any((folder / "cache").glob("*/v1/*-*/*/*")))
            found = modes(own)
            for name in ("state", "log", "cache/mount-s3-cache"):
                if (folder / name).exists():
                    inner = modes(folder / name)
                    found |= {f"{name}/{each}": mode for each, mode in inner.items()}
        directory = socket_directory(os.environ | environ)
        (socket,) = directory.glob(f"{serving_process(path)}-*{SUFFIX}")
        assert stat.S_IMODE(socket.lstat().st_mode) == 0o600
        assert stat.S_IMODE(directory.lstat().st_mode) == 0o700
        assert {each.owner() for each in (socket, directory, own)} == {folder.owner()}
    assert {name: oct(mode) for name, mode in found.items() if mode & 0o077} == {}
    assert any(name.endswith(".data") for name in found)
    assert any(name.endswith(".log") for name in found)
    assert any(name.endswith("usage") for name in found)


def test_the_journal_of_uploads(store: Store, folder: Path) -> None:
    """The same for a mount that uploads while a program writes."""
    environ = {"XDG_STATE_HOME": str(folder / "state")}
    umask = ["sh", "-c", 'umask 0; exec "$@"', "sh"]
    with foreground(store, folder, before=umask, environ=environ) as (_, path):
        with (path / "large").open("wb") as file:
            file.write(b"z" * 20 * MIB)
            state = folder / "state" / "mount-s3"
            eventually(lambda: any(state.glob("*.journal")))
            found = modes(state)
        assert {name: oct(mode) for name, mode in found.items() if mode & 0o077} == {}
