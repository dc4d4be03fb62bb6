"""Keys and names on a real mount: visibility, order and attributes."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import FaultyProxy
from tests.lesser import PAGE, small_pages
from tests.mount.mounting import Mount, mounted, run, store_options

pytestmark = pytest.mark.mount

#: Keys of a flat store, with the paths of those that are visible.
ODD_KEYS = {
    "plain.txt": "plain.txt",
    "dir/file": "dir/file",
    "dir/sub/deep/file": "dir/sub/deep/file",
    "space and tab\there": "space and tab\there",
    "new\nline": "new\nline",
    "control\x01\x1f\x7f": "control\x01\x1f\x7f",
    "quote\"'`$&<>|;*?[]{}!": "quote\"'`$&<>|;*?[]{}!",
    "plus+percent%41equals=hash#question?": "plus+percent%41equals=hash#question?",
    "back\\slash": "back\\slash",
    "ünïcödé/日本語/🎉": "ünïcödé/日本語/🎉",
    "decomposed-e\u0301": "decomposed-e\u0301",
    "trailing space ": "trailing space ",
    "trailing.dot.": "trailing.dot.",
    "-dash": "-dash",
    "~tilde": "~tilde",
    ".hidden": ".hidden",
    "...": "...",
    "n" * 255: "n" * 255,
    "long/" + "l" * 255 + "/x": "long/" + "l" * 255 + "/x",
    "empty//segment": None,
    "/leading": None,
    "dot/./segment": None,
    "dotdot/../segment": None,
    "n" * 256: None,
    "marker/": None,
    "shadowed": None,
    "shadowed/file": "shadowed/file",
    "shadowed-beside": "shadowed-beside",
}


@pytest.fixture(scope="module")
def odd(flat_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount of the flat store with only the odd keys; each object contains its own key."""
    client = flat_store.client()  # one client: making one takes longer than deleting an object
    for item in _listed(flat_store):  # objects of other tests
        client.delete_object(Bucket=flat_store.bucket, Key=item["Key"])
    for key in ODD_KEYS:
        flat_store.put(key, key.encode())
    stored = {item["Key"] for item in _listed(flat_store)}
    assert stored == set(ODD_KEYS), "the store does not keep these keys: the test proves nothing"
    with mounted(flat_store, tmp_path_factory.mktemp("odd"), "--debug", "--read-only") as it:
        yield it
    for key in ODD_KEYS:
        flat_store.delete(key)


def _listed(store: Store) -> list[dict[str, str]]:
    pages = store.client().get_paginator("list_objects_v2").paginate(Bucket=store.bucket)
    return [item for page in pages for item in page.get("Contents", [])]


def test_shown_and_read(odd: Mount) -> None:
    """Exactly the keys that can be names are visible, each with its own bytes."""
    seen = {}
    for folder, _, names in os.walk(os.fsencode(odd.path)):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                seen[os.path.relpath(path, os.fsencode(odd.path)).decode()] = file.read().decode()
    assert seen == {path: key for key, path in ODD_KEYS.items() if path is not None}


def test_directories(odd: Mount) -> None:
    """Common prefixes are directories, a marker makes one, and a directory shadows a file."""
    for name in ("dir", "dir/sub", "marker", "shadowed", "empty", "dot", "dotdot"):
        assert (odd.path / name).is_dir(), name
    assert list((odd.path / "marker").iterdir()) == []
    assert [path.name for path in (odd.path / "shadowed").iterdir()] == ["file"]
    assert list((odd.path / "empty").iterdir()) == []


def test_not_there(odd: Mount) -> None:
    """Missing names and names longer than Linux allows fail with different errors."""
    with pytest.raises(FileNotFoundError):
        (odd.path / "nothing").stat()
    with pytest.raises(FileNotFoundError):
        (odd.path / "plain.txt-and-more").stat()
    with pytest.raises(NotADirectoryError):
        (odd.path / "plain.txt" / "below").stat()
    with pytest.raises(OSError, match="File name too long"):
        (odd.path / ("n" * 256)).stat()
    with pytest.raises(FileNotFoundError):
        os.stat(os.fsencode(odd.path) + b"/invalid\xff\xfeutf8")


def test_order(odd: Mount) -> None:
    """A listing has S3's order: keys as bytes, a directory at its prefix."""
    names = [entry.name for entry in os.scandir(odd.path)]
    keys = [
        os.fsencode(entry.name) + (b"/" if entry.is_dir() else b"")
        for entry in os.scandir(odd.path)
    ]
    assert keys == sorted(keys)
    assert len(names) == len(set(names))


def test_attributes(odd: Mount, flat_store: Store) -> None:
    """Size, time, mode, owner, links and blocks are those of AWS's mount-s3."""
    head = flat_store.client().head_object(Bucket=flat_store.bucket, Key="plain.txt")
    file = (odd.path / "plain.txt").stat()
    assert stat.S_IMODE(file.st_mode) == 0o644
    assert stat.S_ISREG(file.st_mode)
    assert (file.st_nlink, file.st_size, file.st_blocks) == (1, len("plain.txt"), 1)
    assert (file.st_uid, file.st_gid) == (os.getuid(), os.getgid())
    assert file.st_mtime == file.st_ctime == file.st_atime == head["LastModified"].timestamp()
    directory = (odd.path / "dir").stat()
    assert stat.S_IMODE(directory.st_mode) == 0o755
    assert (directory.st_nlink, directory.st_size) == (2, 0)
    room = os.statvfs(odd.path)
    assert room.f_bavail * room.f_frsize > 1 << 50


def test_inode_numbers(odd: Mount) -> None:
    """readdir and stat agree on inode numbers, and no two names share one."""
    listed = {entry.name: entry.inode() for entry in os.scandir(odd.path)}
    again = {name: (odd.path / name).stat().st_ino for name in listed}
    assert listed == again
    assert len(set(again.values())) == len(again)


def test_options_for_attributes(flat_store: Store, folder: Path) -> None:
    """stat shows --uid, --gid, --dir-mode and --file-mode."""
    flat_store.put("modes/file", b"x")
    options = ["--uid", "1234", "--gid", "4321", "--dir-mode", "0750", "--file-mode", "640"]
    with mounted(flat_store, folder, *options) as mount:
        file, directory = (mount.path / "modes" / "file").stat(), (mount.path / "modes").stat()
    assert (file.st_uid, file.st_gid, stat.S_IMODE(file.st_mode)) == (1234, 4321, 0o640)
    assert (directory.st_uid, directory.st_gid) == (1234, 4321)
    assert stat.S_IMODE(directory.st_mode) == 0o750
    flat_store.delete("modes/file")


@pytest.mark.parametrize("how", ["option", "uri"])
def test_prefix(flat_store: Store, folder: Path, how: str) -> None:
    """--prefix and an s3:// URI mount a part of the bucket."""
    for key in ("part/a", "part/b/c", "part", "partial", "elsewhere"):
        flat_store.put(key, key.encode())
    bucket = flat_store.bucket if how == "option" else f"s3://{flat_store.bucket}/part/"
    arguments = ["--prefix", "part/"] if how == "option" else []
    with mounted(flat_store, folder, *arguments, bucket=bucket) as mount:
        assert sorted(os.listdir(mount.path)) == ["a", "b"]
        assert (mount.path / "b" / "c").read_text() == "part/b/c"
        with pytest.raises(FileNotFoundError):
            (mount.path / "elsewhere").stat()
    for key in ("part/a", "part/b/c", "part", "partial", "elsewhere"):
        flat_store.delete(key)


def test_many_names(flat_store: Store, folder: Path) -> None:
    """A directory of three pages has each name once."""
    names = [f"{number:05d}" for number in range(5 * PAGE // 2)]
    flat_store.put_all({f"many/{name}": name.encode() for name in names})
    with FaultyProxy(flat_store.endpoint_url) as proxy:
        proxy.before.append(small_pages)
        with mounted(flat_store, folder, "--prefix", "many/", endpoint_url=proxy.url) as mount:
            assert os.listdir(mount.path) == names
            ls = subprocess.run(
                ["ls", "-l", mount.path], capture_output=True, text=True, check=True
            )
            assert len(ls.stdout.splitlines()) == len(names) + 1
            assert (mount.path / names[-1]).read_bytes() == names[-1].encode()
            with os.scandir(mount.path) as entries:
                half = [next(entries).name for _ in range(PAGE * 5 // 4)]
            assert half == names[: PAGE * 5 // 4]
    flat_store.delete_all(f"many/{name}" for name in names)


def test_read_only(odd: Mount) -> None:
    """Every change is EROFS and has no effect."""
    path = odd.path / "plain.txt"
    attempts: list[Callable[[], object]] = [
        lambda: (odd.path / "new").write_bytes(b"x"),
        lambda: path.write_bytes(b"x"),
        lambda: path.open("ab"),
        lambda: path.unlink(),
        lambda: path.rename(odd.path / "other"),
        lambda: (odd.path / "newdir").mkdir(),
        lambda: (odd.path / "marker").rmdir(),
        lambda: (odd.path / "link").symlink_to("plain.txt"),
        lambda: (odd.path / "hard").hardlink_to(path),
        lambda: path.chmod(0o600),
        lambda: os.chown(path, 1, 1),
        lambda: os.utime(path),
        lambda: os.truncate(path, 0),
        lambda: os.setxattr(path, "user.name", b"value"),
        lambda: os.mkfifo(odd.path / "fifo"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match="Read-only file system"):
            attempt()
    assert path.read_bytes() == b"plain.txt"
    assert not os.access(path, os.W_OK)
    assert os.access(path, os.R_OK)


def test_mounted_twice_is_refused(odd: Mount, flat_store: Store) -> None:
    """Mounting on a mount point is refused, and the existing mount stays."""
    result = run(
        flat_store.bucket, odd.path, *store_options(flat_store), env=flat_store.environment
    )
    assert result.returncode == 1
    assert "already a mount point" in result.stderr
    assert (odd.path / "plain.txt").exists()
