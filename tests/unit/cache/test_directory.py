"""The cache directory: who may use it, what is in it, and the total of all processes."""

import contextlib
import multiprocessing
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog.testing

from mountpoint.cache.blocks._format import MAGIC, crc32c_of
from mountpoint.cache.directory import FORMAT, NAME, CacheDirectory, check_directory
from mountpoint.errors import MountError
from tests.unit.cache.objects import Cached, content, files_of, sum_of

MIB = 1 << 20
SPAWNING = multiprocessing.get_context("spawn")


def inner(directory: CacheDirectory, *names: str) -> Path:
    return Path(directory.path, NAME, FORMAT, *names)


def usage(directory: CacheDirectory) -> int:
    """Return the total as it stands on disk."""
    return int.from_bytes(inner(directory, "usage").read_bytes()[:8], "little")


# --- opening ---


def test_modes(tmp_path: Path) -> None:
    """All that is created belongs to this user alone, whatever the umask."""
    before = os.umask(0)
    try:
        directory = CacheDirectory.open(str(tmp_path / "new"))
        Cached.of(directory, content(5000)).write()
        directory.recount()
        with directory.evicting() as alone:
            assert alone
    finally:
        os.umask(before)
    for path in [tmp_path / "new", *(tmp_path / "new").rglob("*")]:
        assert path.stat().st_mode & 0o7777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o770, 0o701, 0o704])
@pytest.mark.parametrize("name", [NAME, f"{NAME}/{FORMAT}"])
def test_others_may_enter(tmp_path: Path, name: str, mode: int) -> None:
    """A cache that others can enter or list is refused."""
    CacheDirectory.open(str(tmp_path))
    (tmp_path / name).chmod(mode)
    with pytest.raises(MountError, match="can be entered by others"):
        CacheDirectory.open(str(tmp_path))


def test_the_parent_may_be_public(tmp_path: Path) -> None:
    """The directory that is given may be any, such as /tmp."""
    tmp_path.chmod(0o1777)
    CacheDirectory.open(str(tmp_path))


@pytest.mark.parametrize("name", [NAME, f"{NAME}/{FORMAT}"])
@pytest.mark.parametrize("kind", ["link", "dangling", "file", "pipe"])
def test_no_directory(tmp_path: Path, name: str, kind: str) -> None:
    """A link, even to a good directory, is refused; so is what is no directory."""
    good = tmp_path / "good"
    good.mkdir(mode=0o700)
    path = tmp_path / "cache" / name
    path.parent.mkdir(parents=True, mode=0o700)
    (tmp_path / "cache" / NAME).parent.chmod(0o700)
    if kind == "link":
        path.symlink_to(good)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "no/such")
    elif kind == "file":
        path.write_bytes(b"")
    else:
        os.mkfifo(path)
    with pytest.raises(MountError, match="cannot be used: Not a directory"):
        CacheDirectory.open(str(tmp_path / "cache"))
    assert list(good.iterdir()) == []


@pytest.mark.parametrize("name", ["usage", "counted", "evicting", "tmp"])
def test_links_within(tmp_path: Path, name: str) -> None:
    """No link is followed within the cache: what it names stays as it was."""
    directory = CacheDirectory.open(str(tmp_path / "cache"))
    (target := tmp_path / "target").write_bytes(b"x" * 8)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "old").write_bytes(b"")
    os.utime(elsewhere / "old", (0, 0))
    path = inner(directory, name)
    if path.is_dir():
        path.rmdir()
    path.symlink_to(elsewhere if name == "tmp" else target)
    with contextlib.suppress(OSError):
        directory.recount()
    with contextlib.suppress(OSError), directory.evicting():
        directory.remove_abandoned()
    assert target.read_bytes() == b"x" * 8
    assert (elsewhere / "old").exists()


def test_links_among_the_blocks(tmp_path: Path) -> None:
    """Links to directories and files elsewhere are not counted, listed or removed."""
    directory = CacheDirectory.open(str(tmp_path / "cache"))
    elsewhere = tmp_path / "else-where" / "ab"
    elsewhere.mkdir(parents=True)
    (elsewhere / "file").write_bytes(b"theirs")
    inner(directory, "else-where").symlink_to(elsewhere.parent)
    (folder := inner(directory, "a-bucket/ab")).mkdir(parents=True)
    (folder / "link").symlink_to(elsewhere / "file")
    inner(directory, "a-bucket/cd").symlink_to(elsewhere)
    (folder / "x.d").symlink_to(elsewhere)
    assert list(directory.files()) == []
    assert directory.clear() == (0, 0)
    assert (elsewhere / "file").read_bytes() == b"theirs"


AS_ANOTHER = """
import os, sys
from mountpoint.cache.directory import CacheDirectory
from mountpoint.errors import MountError
os.setgid(65534); os.setuid(65534)
try:
    CacheDirectory.open(sys.argv[1])
except MountError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_another_user(public_path: Path, mode: int) -> None:
    """Another user's cache is refused, also by root, with a message that says whose it is."""
    public_path.chmod(0o777)
    CacheDirectory.open(str(public_path))
    (public_path / NAME).chmod(mode)
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER, public_path], capture_output=True, text=True, check=True
    )
    said = f"the cache in '{public_path}' belongs to another user (0)\n"
    assert done.stdout.startswith(said)
    os.chown(public_path / NAME, 65534, 65534)
    with pytest.raises(MountError, match=r"belongs to another user \(65534\)"):
        CacheDirectory.open(str(public_path))


def test_unknown_formats(tmp_path: Path) -> None:
    """Files in other formats are left alone; a warning names them."""
    CacheDirectory.open(str(tmp_path))
    for name in ("v0", "v2"):
        (tmp_path / NAME / name).mkdir()
        (tmp_path / NAME / name / "file").write_bytes(b"theirs")
    with structlog.testing.capture_logs() as logs:
        directory = CacheDirectory.open(str(tmp_path))
    assert [line["files"] for line in logs] == ["v0, v2"]
    Cached.of(directory, content(5000)).write()
    directory.clear()
    assert (tmp_path / NAME / "v2/file").read_bytes() == b"theirs"


def test_a_directory_in_the_mount(tmp_path: Path) -> None:
    """A cache in the mount itself is refused, also by way of a link."""
    (tmp_path / "mnt/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "mnt")
    for path in ("mnt", "mnt/inner", "mnt/new", "link/inner"):
        with pytest.raises(MountError, match="is in the directory of the mount"):
            check_directory(str(tmp_path / path), str(tmp_path / "mnt"))
    check_directory(str(tmp_path / "mnt2"), str(tmp_path / "mnt"))


@pytest.mark.slow
def test_many_at_once(tmp_path: Path) -> None:
    """Processes that create the cache at the same time all succeed."""
    with SPAWNING.Pool(3) as pool:
        assert pool.map(_create, [str(tmp_path / f"new{number}") for number in range(10)] * 4)


def _create(path: str) -> bool:
    return CacheDirectory.open(path).used_bytes == 0


# --- the total ---


def test_each_block_is_counted_once(directory: CacheDirectory) -> None:
    """The total is the sum of all files, also if a block is written a second time."""
    assert not directory.is_counted
    directory.recount()
    cached = Cached.of(directory, content(2 * MIB + 70_000))
    cached.write()
    assert directory.used_bytes == sum_of(directory) > 2 * MIB
    before = directory.used_bytes
    assert os.strerror(cached.put(1)) == "File exists"
    assert directory.used_bytes == sum_of(directory) == before
    assert os.listdir(inner(directory, "tmp")) == []
    one, *_ = files_of(directory)
    assert directory.remove(one)
    assert not directory.remove(one)
    assert directory.used_bytes == sum_of(directory) < before
    assert directory.clear() == (2, sum_of(directory) + before - one.allocated_bytes)
    assert directory.used_bytes == 0


def _churn(path: str, seed: int) -> None:
    directory = CacheDirectory.open(path)
    cached = Cached.of(directory, content(4 * MIB), key=b"%d" % (seed % 3))
    for index in range(40):
        cached.put((index + seed) % 4)
        if index % 5 == 0:
            with directory.evicting() as alone:
                for file in list(directory.files())[:2] if alone else ():
                    directory.remove(file)
        if index % 20 == 10:
            with directory.evicting() as alone:
                if alone:
                    directory.recount()


@pytest.mark.slow
def test_many_processes(directory: CacheDirectory) -> None:
    """Whatever processes write, remove and count at once, the total is right at the end."""
    directory.recount()
    processes = [SPAWNING.Process(target=_churn, args=(directory.path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        with directory.evicting() as alone:  # so that nobody removes any
            total = sum_of(directory)
            assert not alone or directory.used_bytes >= total
        time.sleep(0.01)
    assert [process.exitcode for process in processes] == [0] * 3
    # A count may see a block that is added as well.
    assert 0 <= directory.used_bytes - sum_of(directory) <= 8 * MIB
    directory.recount()
    assert directory.used_bytes == sum_of(directory)


def test_counting_while_others_write(directory: CacheDirectory) -> None:
    """What is added during a count is not lost, whether the total was known before or not."""
    cached = Cached.of(directory, content(4 * MIB))
    found = directory.files
    for known in (False, True):
        if known:
            directory.recount()
        cached.write(*([2, 3] if known else [0]))
        with pytest.MonkeyPatch.context() as patch:

            def files(folder: str | None = None) -> object:
                everything = list(found(folder))
                if folder is None:
                    cached.write(1)  # after its folder was read
                return everything

            patch.setattr(directory, "files", files)
            directory.recount()
        assert directory.used_bytes == sum_of(directory)
        directory.remove(next(file for file in directory.files() if file.path.endswith(".1")))


@pytest.mark.parametrize(
    "content_",
    [b"", b"1234567", b"123456789", b"\xff" * 8, b"\0" * 7 + b"\x7f", b"\0" * 7 + b"\x10"],
)
def test_a_total_that_is_damaged(directory: CacheDirectory, content_: bytes) -> None:
    """A file that holds no total is replaced by a count, and stops nothing until then."""
    directory.recount()
    cached = Cached.of(directory, content(2 * MIB))
    cached.write(0)
    inner(directory, "usage").write_bytes(content_)
    assert not directory.is_counted
    assert directory.used_bytes == 0
    cached.write(1)
    assert not directory.is_counted
    assert directory.recount() == directory.used_bytes == sum_of(directory)
    assert usage(directory) == sum_of(directory)


def test_a_total_that_is_gone(directory: CacheDirectory) -> None:
    """A lost total is not known, also after blocks were written."""
    directory.recount()
    cached = Cached.of(directory, content(2 * MIB))
    cached.write(0)
    inner(directory, "usage").unlink()
    cached.write(1)
    assert not directory.is_counted
    assert directory.recount() == sum_of(directory)


# --- other files ---


def test_abandoned_files(directory: CacheDirectory) -> None:
    """Files that a killed process was writing are removed after an hour; others are not."""
    old, new, future = (inner(directory, "tmp", name) for name in ("old", "new", "future"))
    now_s = time.time()
    for path, made_s in [(old, now_s - 4000), (new, now_s - 3000), (future, now_s + 90000)]:
        path.write_bytes(b"x")
        os.utime(path, (made_s, made_s))
    directory.remove_abandoned()
    assert [path.exists() for path in (old, new, future)] == [False, True, True]
    directory.clear()
    assert not new.exists()


def test_names_of_temporary_files(tmp_path: Path) -> None:
    """No two writers have a name in common."""
    both = [CacheDirectory.open(str(tmp_path)) for _ in range(2)]
    names = {each.temporary() for each in both for _ in range(100)}
    assert len(names) == 200


def test_one_evicts(tmp_path: Path) -> None:
    """Only one process removes blocks at a time; its end lets the next one."""
    one, other = (CacheDirectory.open(str(tmp_path)) for _ in range(2))
    with one.evicting() as first, other.evicting() as second:
        assert (first, second) == (True, False)
    with other.evicting() as second:
        assert second


def test_what_was_used_meanwhile(directory: CacheDirectory) -> None:
    """A block that was used after it was listed is not removed."""
    cached = Cached.of(directory, content(5000))
    cached.write()
    os.utime(cached.path(), (5, 5))
    (listed,) = directory.files()
    assert cached.read()[0] == 0
    assert not directory.remove_unused(listed)
    (listed,) = directory.files()
    assert directory.remove_unused(listed)
    assert not directory.remove_unused(listed)


def test_a_trailer_that_names_a_longer_identity(directory: CacheDirectory) -> None:
    """The block is damaged, although its checksum is right."""
    cached = Cached.of(directory, content(100))
    cached.write()
    trailer = struct.pack("<I", 1 << 30) + bytes(40)
    end = struct.pack("<II", crc32c_of(trailer), len(trailer) + 16) + MAGIC
    Path(cached.path()).write_bytes(trailer + end)
    (file,) = files_of(directory)
    assert directory.check(file) == "its trailer is damaged"
    assert directory.identity(file) is None


def test_identities(directory: CacheDirectory) -> None:
    """The identity is in the file; damage is told by what is wrong."""
    cached = Cached.of(directory, content(5000))
    cached.write()
    (file,) = directory.files()
    assert directory.identity(file) == cached.identity
    assert directory.check(file) is None
    assert file.bucket == cached.identity.path.partition("/")[0]
    os.rename(cached.path(), cached.path(1))
    (renamed,) = directory.files()
    assert directory.check(renamed) == "it has the name of another block"
    assert directory.check(file) is None  # it is gone
    Path(cached.path(1)).write_bytes(b"x" * 100)
    assert directory.identity(renamed) is None
    assert directory.check(renamed) == "it has no trailer"


def test_someone_removes_it(tmp_path: Path) -> None:
    """`reopen` makes a new directory, which all that was open uses from then on."""
    directory = CacheDirectory.open(str(tmp_path / "cache"))
    cached = Cached.of(directory, content(5000))
    cached.write()
    version = cached.version
    subprocess.run(["rm", "-rf", tmp_path / "cache"], check=True)
    assert not version.holds(0)
    assert os.strerror(cached.put(0)) == "No such file or directory"
    before = len(os.listdir("/proc/self/fd"))
    directory.reopen()
    cached.write()
    assert version.holds(0)
    assert cached.read() == (0, cached.data)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not os.get_inheritable(directory.store.directory)
    (tmp_path / "cache" / NAME).chmod(0o755)
    with pytest.raises(MountError, match="can be entered"):
        directory.reopen()
