"""Renames and appends through the kernel, with programs that need them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import Mount, content, eventually, mounted, pending

MIB = 1 << 20
OPTIONS = ["--allow-overwrite", "--allow-delete", "--allow-rename", "--allow-append"]


@pytest.fixture(scope="module")
def mount(flat_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount with all permissions, without staged writes."""
    folder = tmp_path_factory.mktemp("rename")
    with mounted(flat_store, folder, "--prefix", "rename/", *OPTIONS) as it:
        yield it


def keys(store: Store, prefix: str) -> set[str]:
    """Return the keys below a prefix of `rename/`, without it."""
    listed = store.client().list_objects_v2(Bucket=store.bucket, Prefix=f"rename/{prefix}")
    return {item["Key"].removeprefix("rename/") for item in listed.get("Contents", [])}


def sh(command: str, cwd: Path) -> str:
    """Run a command that must succeed; return its output."""
    done = subprocess.run(
        ["bash", "-ec", command], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("size", [0, 1000, 9 * MIB])
def test_mv(mount: Mount, flat_store: Store, size: int) -> None:
    """A file has only its new name, with its bytes, even if it replaces another file."""
    data = os.urandom(size)
    old, new = mount.path / f"old-{size}", mount.path / f"new-{size}"
    for _ in range(2):
        old.write_bytes(data)
        eventually(lambda: content(flat_store, f"rename/{old.name}") is not None)
        sh(f"mv -f {old.name} {new.name}", mount.path)
        assert content(flat_store, f"rename/{new.name}") == data
        assert content(flat_store, f"rename/{old.name}") is None
        assert not old.exists()
        assert new.read_bytes() == data


def test_mv_does_not_replace(mount: Mount) -> None:
    """`mv -n` does not replace a file."""
    (mount.path / "n1").write_bytes(b"1")
    (mount.path / "n2").write_bytes(b"2")
    subprocess.run(["mv", "-n", "n1", "n2"], cwd=mount.path, check=False, timeout=60)
    assert (mount.path / "n2").read_bytes() == b"2"


@pytest.mark.parametrize("size", [0, 1000, 20 * MIB])
def test_renamed_while_it_is_written(mount: Mount, flat_store: Store, size: int) -> None:
    """A file that is renamed before it is closed appears only under its new name."""
    old, new = mount.path / f"unclosed-{size}", mount.path / f"closed-{size}"
    with old.open("wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(bytes(MIB))
        file.write(bytes(size % MIB))
        old.rename(new)
        assert not old.exists()
        file.write(b"end")
    assert new.read_bytes() == bytes(size) + b"end"
    assert keys(flat_store, f"unclosed-{size}") == set()
    assert pending(flat_store, "rename/") == []


def test_renamed_after_a_failed_write(flat_store: Store, folder: Path) -> None:
    """What is written then is in the renamed file, although the kernel looks no name up again."""
    options = ["--prefix", "failed/", "--metadata-ttl", "300", *OPTIONS]
    with mounted(flat_store, folder, *options) as it:
        old, new = it.path / "old", it.path / "new"
        old.write_bytes(b"content")
        with pytest.raises(OSError, match="Invalid argument"), old.open("wb", buffering=0) as file:
            os.pwrite(file.fileno(), b"not at its beginning", 5)
        old.rename(new)
        new.write_bytes(b"new")
        assert new.read_bytes() == b"new"
        assert content(flat_store, "failed/new") == b"new"
        assert content(flat_store, "failed/old") is None


def test_a_tree(mount: Mount, flat_store: Store) -> None:
    """A directory moves with all its contents, and a new one of the old name is empty."""
    sh(
        "mkdir -p tree/a/b; for i in 1 2 3; do echo $i > tree/a/$i; echo $i > tree/a/b/$i; done",
        mount.path,
    )
    sh("cp -r tree copy; mv tree moved; diff -r copy moved", mount.path)
    assert keys(flat_store, "tree/") == set()
    assert len(keys(flat_store, "moved/")) == 6
    sh(
        'mkdir tree; test -z "$(ls tree)"; rmdir tree; mv moved/a moved/c; rm -r copy moved',
        mount.path,
    )
    assert keys(flat_store, "moved/") == set()


APPENDS = {
    "shell": "echo one > a; echo two >> a; echo three >> a",
    "one descriptor": "exec 5> a; echo one >&5; echo two >&5; echo three >&5; exec 5>&-",
    "tee": "echo one > a; echo two | tee -a a > /dev/null; echo three | tee -a a > /dev/null",
    "python": f"""{sys.executable} -c "
for word in ('one', 'two', 'three'):
    with open('a', 'a') as file:
        print(word, file=file)
" """,
    "fsync between": f"""{sys.executable} -c "
import os
with open('a', 'a') as file:
    for word in ('one', 'two', 'three'):
        print(word, file=file, flush=True)
        os.fsync(file.fileno())
" """,
    "read between": "echo one > a; cat a > /dev/null; echo two >> a; cat a > /dev/null; "
    "echo three >> a",
}


@pytest.mark.parametrize("case", APPENDS)
def test_appending(mount: Mount, flat_store: Store, case: str) -> None:
    """Programs that append find the old bytes before their own."""
    folder = mount.path / f"append-{case.replace(' ', '-')}"
    folder.mkdir()
    sh(APPENDS[case], folder)
    assert (folder / "a").read_bytes() == b"one\ntwo\nthree\n"
    assert content(flat_store, f"rename/{folder.name}/a") == b"one\ntwo\nthree\n"


def test_appending_to_a_large_file(mount: Mount, flat_store: Store) -> None:
    """The server copies the existing bytes."""
    data = os.urandom(20 * MIB)
    path = mount.path / "large"
    path.write_bytes(data)
    with path.open("ab") as file:
        file.write(b"more")
    assert path.read_bytes() == data + b"more"
    assert content(flat_store, "rename/large") == data + b"more"


def test_markers(flat_store: Store, folder: Path) -> None:
    """With --keep-directories other mounts see empty directories, and rmdir removes them."""
    options = ["--prefix", "rename/", "--keep-directories", "--allow-rename"]
    other = folder / "other"
    other.mkdir()
    with mounted(flat_store, folder, *options) as one, mounted(flat_store, other, *options) as two:
        (one.path / "kept").mkdir()
        assert (two.path / "kept").is_dir()
        assert os.listdir(two.path / "kept") == []
        (one.path / "kept").rename(one.path / "renamed")
        assert keys(flat_store, "renamed") == {"renamed/"}
        (two.path / "renamed").rmdir()
        assert keys(flat_store, "renamed") == set()


MADE_AGAIN = {
    "mkdir": "rmdir there; mkdir there",
    "rename": "mkdir other; mv -T other there",
    "rename of a full one": "mkdir other; echo > other/one; mv -T other there",
}


@pytest.mark.parametrize("how", MADE_AGAIN)
def test_a_directory_made_again(mount: Mount, how: str) -> None:
    """A new directory works although a program is still in the removed one of that name.

    The kernel refuses everything in the inode of a directory that it has removed.
    """
    place = mount.path / how.replace(" ", "-")
    place.mkdir()
    (place / "there").mkdir()
    before = os.open(place / "there", os.O_RDONLY | os.O_DIRECTORY)
    try:
        sh(MADE_AGAIN[how], place)
        sh("echo > there/two; ls there; mkdir there/below; rmdir there/below", place)
        assert (place / "there").stat().st_ino != os.fstat(before).st_ino
    finally:
        os.close(before)
    assert "two" in os.listdir(place / "there")
