"""Modes, owners and times through the kernel: refused, ignored or kept."""

import errno
import os
import shutil
import stat
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Store
from tests.mount.mounting import errno_of, eventually, mounted

MIB = 1 << 20
WHEN = "2001-02-03 04:05:06.000000007 UTC"
WHEN_NS = 981_173_106_000_000_007
KEEP = ("--attributes", "keep", "--allow-other")

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def pair(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two mounts of one prefix that keep attributes; the second always asks."""
    where = ("--prefix", "kept/", *KEEP)
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with (
        mounted(store, one, "--allow-overwrite", *where) as first,
        mounted(store, two, "--metadata-ttl", "0", *where) as second,
    ):
        yield first.path, second.path


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A tree with its own modes and times; one file is larger than a part."""
    root = tmp_path / "original"
    (root / "below").mkdir(parents=True)
    for number, (name, size) in enumerate({"a": 0, "b": 5, "below/c": 9 * MIB}.items()):
        path = root / name
        path.write_bytes(bytes(size))
        path.chmod(0o600 + number)
        os.utime(path, ns=(WHEN_NS + number, WHEN_NS + number))
        if os.geteuid() == 0:
            os.chown(path, 5 + number, 6 + number)
    return root


def run(*command: str | Path, umask: int = -1) -> None:
    """Run a program; it must succeed and print nothing."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, umask=umask
    )
    assert (done.returncode, done.stderr) == (0, "")


def shown(path: Path, *, owners: bool = True) -> tuple[int, ...]:
    """Return mode, time, and owners of a file."""
    found = path.stat()
    assert stat.S_ISREG(found.st_mode)
    ids = (found.st_uid, found.st_gid) if owners else ()
    return stat.S_IMODE(found.st_mode), found.st_mtime_ns, *ids


def files(root: Path, **options: Any) -> dict[str, tuple[Any, ...]]:
    """Return the attributes and the content of all files of a tree."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(root)): (*shown(path, **options), path.read_bytes()) for path in paths
    }


def metadata(store: Store, key: str) -> dict[str, str]:
    """Return an object's metadata."""
    found: dict[str, str] = store.client().head_object(Bucket=store.bucket, Key=key)["Metadata"]
    return {name.lower(): value for name, value in found.items()}


# --- Kept ---

COPIES = {
    "cp -p": ("cp", "-rp"),
    "cp -a": ("cp", "-a"),
    "rsync": ("rsync", "-a", "--inplace"),
}


@pytest.mark.parametrize("program", COPIES)
def test_copies(pair: Pair, original: Path, program: str) -> None:
    """A copied tree has the original's attributes, in this mount and in another one."""
    command, name = COPIES[program], program.replace(" ", "")
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} here")
    run(*command, f"{original}/.", pair[0] / name)
    for mount in pair:
        assert files(mount / name) == files(original)


def test_rsync_again(pair: Pair, original: Path) -> None:
    """rsync does not copy files again that it has copied with their times."""
    if shutil.which("rsync") is None:
        pytest.skip("there is no rsync here")
    for expected in (3, 0):
        done = subprocess.run(
            ["rsync", "-a", "--inplace", "--stats", f"{original}/", pair[0] / "twice/"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"files transferred: {expected}\n" in done.stdout


def test_python(pair: Pair, original: Path) -> None:
    """shutil sets attributes by name, after it has closed the file."""
    shutil.copytree(original, pair[0] / "python")
    shutil.copy2(original / "b", pair[0] / "python" / "d")
    expected = files(original, owners=False)
    expected["d"] = expected["b"]
    for mount in pair:
        assert files(mount / "python", owners=False) == expected


@pytest.mark.parametrize("program", ["python", *COPIES])
def test_staged_copies(
    store: Store, folder: Path, original: Path, tmp_path: Path, program: str
) -> None:
    """Staged writes keep the attributes of a tree, even after it is renamed."""
    prefix = f"staged-{program.replace(' ', '')}/"
    options = ("--prefix", prefix, "--allow-rename", "--allow-overwrite", *KEEP)
    where = tmp_path / "staging"
    where.mkdir()
    expected = files(original, owners=program != "python")
    with mounted(store, folder, *options, "--staged-writes", str(where)) as mount:
        if program == "python":
            shutil.copytree(original, mount.path / "a")
        elif shutil.which(COPIES[program][0]) is None:
            pytest.skip(f"there is no {program} here")
        else:
            run(*COPIES[program], f"{original}/.", mount.path / "a")
        (mount.path / "a").rename(mount.path / "b")
        assert files(mount.path / "b", owners=program != "python") == expected
    with mounted(store, folder, *options) as mount:
        assert files(mount.path / "b", owners=program != "python") == expected


def test_install(pair: Pair, original: Path) -> None:
    """install(1) sets a mode and, if requested, the time."""
    path = pair[0] / "installed"
    run("install", "-p", "-m", "0750", original / "b", path)
    for mount in pair:
        assert shown(mount / "installed", owners=False) == (0o750, WHEN_NS + 1)
        assert (mount / "installed").read_bytes() == bytes(5)


def test_unzip(pair: Pair, tmp_path: Path) -> None:
    """unzip sets modes and times of the files that it extracts."""
    if shutil.which("unzip") is None:
        pytest.skip("there is no unzip here")
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for name, mode in {"a": 0o640, "d/b": 0o755}.items():
            info = zipfile.ZipInfo(name, (2001, 2, 4, 4, 5, 6))
            info.create_system, info.external_attr = 3, (stat.S_IFREG | mode) << 16
            out.writestr(info, name)
    there, here = pair[0] / "unzipped", tmp_path / "unzipped"
    for folder in (there, here):
        run("unzip", "-q", archive, "-d", folder)
    assert files(here)["d/b"][0] == 0o755
    for mount in pair:
        assert files(mount / "unzipped") == files(here)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0])
def test_new_files(pair: Pair, store: Store, umask: int) -> None:
    """A new file belongs to its writer, and has the mode from the program and its umask."""
    name = f"new-{umask:o}"
    run("touch", pair[0] / name, umask=umask)
    found = pair[1] / name
    eventually(found.exists)  # an empty file is created when its last descriptor is closed
    assert shown(found)[0] == 0o666 & ~umask
    assert shown(found)[2:] == (os.geteuid(), os.getegid())
    kept = metadata(store, f"kept/{name}")
    assert kept["mode"] == str(stat.S_IFREG | 0o666 & ~umask)
    assert (kept["uid"], kept["gid"]) == (str(os.geteuid()), str(os.getegid()))


@pytest.mark.parametrize("size", [0, 5, 9 * MIB])
def test_attributes_of_existing_files(pair: Pair, store: Store, size: int) -> None:
    """chmod, chown and touch change an existing file for all mounts, but not its content."""
    name = f"there-{size}"
    here, there = pair[0] / name, pair[1] / name
    here.write_bytes(bytes(size))
    run("chmod", "0604", here)
    run("touch", "-d", WHEN, here)
    for path in (here, there):
        assert shown(path, owners=False) == (0o604, WHEN_NS)
    if os.geteuid() == 0:
        run("chown", "5:6", here)
        for path in (here, there):
            assert shown(path) == (0o604, WHEN_NS, 5, 6)
        assert metadata(store, f"kept/{name}") == {
            "mode": "33156",
            "uid": "5",
            "gid": "6",
            "mtime": "981173106.000000007",
        }
    for path in (here, there):
        assert path.read_bytes() == bytes(size)
    run("chmod", "0600", there)
    assert shown(there, owners=False)[0] == 0o600


def test_the_kernel_checks_them(pair: Pair) -> None:
    """A user without read permission by the mode cannot read the file."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    path = pair[0] / "private"
    path.write_bytes(b"1")
    path.chmod(0o600)
    # Start at the mount's root: other users cannot enter the directories above it.
    script = (
        f"import os; root = os.open({str(path.parent)!r}, os.O_RDONLY); os.seteuid(12345); "
        "os.open('private', os.O_RDONLY, dir_fd=root)"
    )
    done = subprocess.run(["python3", "-c", script], capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr
    path.chmod(0o644)
    run("python3", "-c", script)


def test_written_anew(pair: Pair) -> None:
    """A replaced file keeps its mode, and has the time of its new content."""
    path = pair[0] / "anew"
    path.write_bytes(b"1")
    path.chmod(0o640)
    os.utime(path, ns=(WHEN_NS, WHEN_NS))
    path.write_bytes(b"22")
    for mount in pair:
        mode, mtime_ns = shown(mount / "anew", owners=False)
        assert mode == 0o640
        assert mtime_ns > WHEN_NS


def test_metadata_written_by_s3fs(pair: Pair, store: Store) -> None:
    """Metadata of other programs are read, and their other entries are kept."""
    store.client().put_object(
        Bucket=store.bucket,
        Key="kept/s3fs",
        Body=b"1",
        ContentType="text/x-test",
        CacheControl="no-cache",
        Metadata={"mode": "33152", "uid": "7", "gid": "8", "mtime": "981173106", "author": "me"},
    )
    path = pair[0] / "s3fs"
    assert shown(path) == (0o600, 981_173_106 * 10**9, 7, 8)
    path.chmod(0o640)
    found = store.client().head_object(Bucket=store.bucket, Key="kept/s3fs")
    assert found["Metadata"]["mode"] == "33184"
    assert found["Metadata"]["author"] == "me"
    assert (found["ContentType"], found["CacheControl"]) == ("text/x-test", "no-cache")


def test_directories_keep_nothing(pair: Pair, original: Path) -> None:
    """A directory is not an object: setting its attributes is no error, and has no effect."""
    path = pair[0] / "directory"
    path.mkdir()
    before = path.stat()
    path.chmod(0o700)
    os.utime(path, ns=(1, 1))
    after = path.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


# --- Refused and ignored ---

SETTINGS: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: path.chmod(0o600),
    "chown": lambda path: os.chown(path, 1, 1),
    "utime": lambda path: os.utime(path, ns=(5, 5)),
    "touch": os.utime,
}


@pytest.mark.parametrize("how", ["refuse", "ignore"])
def test_attributes_without_keep(store: Store, folder: Path, how: str) -> None:
    """By default attributes are EPERM with a hint in the log; with ignore they have no effect."""
    store.client().put_object(
        Bucket=store.bucket, Key=f"{how}/d/a", Body=b"1", Metadata={"mode": "33152"}
    )
    with mounted(store, folder, "--prefix", f"{how}/", "--attributes", how) as mount:
        path = mount.path / "d" / "a"
        before = shown(path)
        assert before[0] == 0o644, "kept attributes are not shown"
        expected = errno.EPERM if how == "refuse" else None
        for where in (path, path.parent):
            for setting, act in SETTINGS.items():
                assert errno_of(lambda act=act, where=where: act(where)) == expected, setting  # type: ignore[misc]
        assert shown(path) == before
        assert ("--attributes ignore" in mount.log) == (how == "refuse")
    assert metadata(store, f"{how}/d/a") == {"mode": "33152"}


def test_programs_that_set_by_name(store: Store, folder: Path, original: Path) -> None:
    """With ignore, programs that set attributes of their files succeed."""
    with mounted(store, folder, "--prefix", "ignored/", "--attributes", "ignore") as mount:
        shutil.copytree(original, mount.path / "python")
        run("cp", "-a", original, mount.path / "cp")
        for name in ("python", "cp"):
            found = files(mount.path / name, owners=False)
            assert {name: each[-1] for name, each in found.items()} == {
                name: each[-1] for name, each in files(original).items()
            }
            assert {each[0] for each in found.values()} == {0o644}


def test_requests(store: Store, folder: Path) -> None:
    """Without keep, attributes cost no HEAD; with it, one for each file of a listing."""
    for name in "abc":
        store.put(f"asked/{name}", b"1")
    for number, (how, heads) in enumerate({"refuse": 0, "ignore": 0, "keep": 3}.items()):
        where = folder / str(number)
        where.mkdir()
        with mounted(store, where, "--prefix", "asked/", "--attributes", how, "--debug") as mount:
            subprocess.run(["ls", "-l", mount.path], stdout=subprocess.DEVNULL, check=True)
            assert mount.counters()["heads"] == heads
