"""What works on a mount of each store.

tests/stores.py describes the tests, and lists the known failures.
"""

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from botocore.exceptions import FlexibleChecksumError

from tests.conftest import Store
from tests.mount.mounting import Mount, content, errno_of, eventually, mounted
from tests.random_bytes import random_bytes
from tests.stores import LACKS

pytestmark = pytest.mark.mount

MIB = 1 << 20
LARGE_BYTES = 20 * MIB + 12_345
LARGE = partial(random_bytes, 7, LARGE_BYTES)
OTHER = partial(random_bytes, 8, LARGE_BYTES)
MANY = 1100
ODD_NAMES = [
    "a b",
    "plus+and%41percent",
    "ünïcödé 日本語",
    "amp&eq=semi;",
    "what?#hash",
    "quote'\"",
]
OPTIONS = ["--allow-overwrite", "--allow-delete", "--allow-rename", "--allow-append"]


@pytest.fixture(autouse=True)
def _lack(request: pytest.FixtureRequest, each_store: Store) -> None:
    """A failure in the table must still fail."""
    behaviour = request.node.originalname.removeprefix("test_")
    fact = LACKS.get((each_store.name, behaviour))
    if fact is not None:
        request.applymarker(pytest.mark.xfail(strict=True, reason=f"{each_store.name}: {fact}"))


@pytest.fixture(scope="module")
def mount(each_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """The store's bucket, mounted with all changes allowed."""
    folder = tmp_path_factory.mktemp(each_store.name)
    with mounted(each_store, folder, "--debug", *OPTIONS) as it:
        yield it


#: The options of two more mounts, of which each shows what the store has of what the other did.
KEEP = ["--attributes", "keep", "--keep-directories"]


@pytest.fixture(scope="module")
def keeping(each_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that keeps attributes and directories."""
    with mounted(each_store, tmp_path_factory.mktemp("keeping"), *KEEP, *OPTIONS) as it:
        yield it


@pytest.fixture(scope="module")
def staging(each_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that does the same, and stages what is written."""
    folder = tmp_path_factory.mktemp("staging")
    (folder / "stage").mkdir()
    staged = ["--staged-writes", str(folder / "stage")]
    with mounted(each_store, folder, *staged, *KEEP, *OPTIONS) as it:
        yield it


def files_below(path: Path) -> dict[str, bytes]:
    """Return all files below a directory, by their paths."""
    found = [each for each in path.rglob("*") if each.is_file()]
    return {str(each.relative_to(path)): each.read_bytes() for each in found}


def write(path: Path, data: bytes) -> None:
    """Write a new file, 1 MiB at a time."""
    with path.open("wb", buffering=0) as file:
        for offset in range(0, len(data), MIB):
            file.write(data[offset : offset + MIB])


# --- Names ---


def test_nested_directories(mount: Mount, each_store: Store) -> None:
    objects = {f"tree/{a}/{b}/file-{c}": b"x" * c for a in "ab" for b in "cde" for c in range(3)}
    objects |= {"tree/top": b"top", "tree/a!": b"before the directory", "tree/a0": b"behind it"}
    each_store.put_all(objects)
    assert files_below(mount.path / "tree") == {
        key.removeprefix("tree/"): body for key, body in objects.items()
    }
    assert sorted(os.listdir(mount.path / "tree")) == ["a", "a!", "a0", "b", "top"]


def test_many_names(mount: Mount, each_store: Store) -> None:
    names = [f"{n:04d}-{'odd' if n % 2 else 'even'}" for n in range(MANY)]
    each_store.put_all({f"many/{name}": b"" for name in names})
    assert sorted(os.listdir(mount.path / "many")) == names
    assert (mount.path / "many" / names[MANY // 2]).stat().st_size == 0
    assert not (mount.path / "many" / "0550-none").exists()


def test_odd_names(mount: Mount, each_store: Store) -> None:
    folder = mount.path / "odd"
    for name in ODD_NAMES:
        (mount.path / "odd").mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    listed = each_store.client().list_objects_v2(Bucket=each_store.bucket, Prefix="odd/")
    assert sorted(item["Key"] for item in listed["Contents"]) == sorted(
        f"odd/{name}" for name in ODD_NAMES
    )
    assert files_below(folder) == {name: name.encode() for name in ODD_NAMES}


def test_control_characters(mount: Mount) -> None:
    folder = mount.path / "control"
    folder.mkdir()
    for name in ("tab\there", "new\nline", "one\x01"):
        (folder / name).write_bytes(b"x")
    assert sorted(os.listdir(folder)) == ["new\nline", "one\x01", "tab\there"]
    assert (folder / "one\x01").read_bytes() == b"x"


def test_file_beside_directory(mount: Mount, each_store: Store) -> None:
    each_store.put_all({"beside/a": b"shadowed"})
    each_store.put_all({"beside/a/b": b"below"})
    assert files_below(mount.path / "beside") == {"a/b": b"below"}


# --- Reading ---


def test_read_whole(mount: Mount, each_store: Store) -> None:
    objects = {f"read/{size}": LARGE()[:size] for size in (0, 1, 5000, 2 * MIB, LARGE_BYTES)}
    each_store.put_all(objects)
    for key, body in objects.items():
        assert (mount.path / key).read_bytes() == body


def test_read_ranges(mount: Mount, each_store: Store) -> None:
    each_store.put("ranges", LARGE())
    chance = random.Random(3)
    with open(mount.path / "ranges", "rb", buffering=0) as file:
        for _ in range(40):
            offset, size = chance.randrange(LARGE_BYTES), chance.randrange(1, 200_000)
            assert os.pread(file.fileno(), size, offset) == LARGE()[offset : offset + size]
        assert os.pread(file.fileno(), 10, LARGE_BYTES - 3) == LARGE()[-3:]


def _read_on(path: Path, change: Callable[[], object]) -> tuple[bytes, int | None]:
    """Read a file, and call `change` after the first MiB; return the bytes, and the final errno."""
    with open(path, "rb", buffering=0) as file:
        got = file.read(MIB)
        change()
        try:
            while chunk := file.read(MIB):
                got += chunk
        except OSError as error:
            return got, error.errno
    return got, None


def test_replaced_while_open(mount: Mount, each_store: Store) -> None:
    each_store.put("replaced", LARGE())
    got, error = _read_on(mount.path / "replaced", lambda: each_store.put("replaced", OTHER()))
    assert LARGE().startswith(got)
    assert error == errno.ESTALE or (error is None and got == LARGE())
    assert (mount.path / "replaced").read_bytes() == OTHER()


def test_deleted_while_open(mount: Mount, each_store: Store) -> None:
    each_store.put("deleted", LARGE())
    got, error = _read_on(mount.path / "deleted", lambda: each_store.delete("deleted"))
    assert LARGE().startswith(got)
    assert error in (errno.ESTALE, errno.ENOENT) or (error is None and got == LARGE())
    # If all bytes had arrived before, the deletion shows only when the name expires.
    eventually(lambda: not (mount.path / "deleted").exists())


# --- Writing ---


def has(store: Store, key: str, data: bytes) -> bool:
    """Whether an object has these bytes. An empty file is uploaded after its close."""
    try:
        return content(store, key) == data
    except FlexibleChecksumError:
        return False  # not every store replaces an object atomically


def test_write_small(mount: Mount, each_store: Store) -> None:
    for size in (0, 1, 100_000):
        (mount.path / f"small-{size}").write_bytes(LARGE()[:size])
        eventually(partial(has, each_store, f"small-{size}", LARGE()[:size]))
        assert (mount.path / f"small-{size}").read_bytes() == LARGE()[:size]


def test_write_large(mount: Mount, each_store: Store) -> None:
    write(mount.path / "large", LARGE())
    assert content(each_store, "large") == LARGE()
    assert (mount.path / "large").read_bytes() == LARGE()


@pytest.mark.parametrize("size", [5, LARGE_BYTES])
def test_created_by_two(mount: Mount, each_store: Store, size: int) -> None:
    path = mount.path / f"two-{size}"
    file = path.open("wb")
    file.write(LARGE()[:size])
    each_store.put(path.name, b"theirs")
    assert errno_of(file.close) == errno.EEXIST
    assert content(each_store, path.name) == b"theirs"


def test_overwrite(mount: Mount, each_store: Store) -> None:
    for data in (LARGE()[:100], OTHER(), LARGE(), OTHER()[:5], b""):
        write(mount.path / "over", data)
        eventually(partial(has, each_store, "over", data))
        assert (mount.path / "over").read_bytes() == data


def test_delete(mount: Mount, each_store: Store) -> None:
    each_store.put_all({f"gone/{a}/{b}": b"x" for a in "ab" for b in "cd"})
    (mount.path / "gone" / "a" / "c").unlink()
    assert content(each_store, "gone/a/c") is None
    shutil.rmtree(mount.path / "gone")
    assert "Contents" not in each_store.client().list_objects_v2(
        Bucket=each_store.bucket, Prefix="gone/"
    )


def test_directories_vanish(mount: Mount, each_store: Store) -> None:
    each_store.put_all({"vanishing/deep/er/file": b"x"})
    shutil.rmtree(mount.path / "vanishing")
    assert not (mount.path / "vanishing").exists()


def test_directories_kept(mount: Mount, keeping: Mount, staging: Mount) -> None:
    (keeping.path / "kept" / "below").mkdir(parents=True)
    assert (staging.path / "kept" / "below").is_dir()
    (staging.path / "kept" / "below").rmdir()
    (staging.path / "kept").rmdir()
    assert not (mount.path / "kept").exists()


def test_rename(mount: Mount, each_store: Store) -> None:
    each_store.put_all({"old/a b+%": LARGE(), "old/deep/er": b"2", "old/deep/e": b"1"})
    (mount.path / "old").rename(mount.path / "new")
    expected = {"a b+%": LARGE(), "deep/er": b"2", "deep/e": b"1"}
    assert files_below(mount.path / "new") == expected
    assert files_below(mount.path / "old") == {}
    (mount.path / "new" / "deep" / "e").rename(mount.path / "new" / "deep" / "er")
    assert content(each_store, "new/deep/er") == b"1"
    assert content(each_store, "new/deep/e") is None


def test_append_small(mount: Mount, each_store: Store) -> None:
    (mount.path / "log").write_bytes(b"one ")
    for word in (b"two ", b"three"):
        with (mount.path / "log").open("ab") as file:
            file.write(word)
    assert content(each_store, "log") == b"one two three"
    assert (mount.path / "log").read_bytes() == b"one two three"


def test_append_large(mount: Mount, each_store: Store) -> None:
    each_store.put("grown", LARGE())
    with (mount.path / "grown").open("ab") as file:
        file.write(OTHER()[:MIB])
    assert content(each_store, "grown") == LARGE() + OTHER()[:MIB]
    assert (mount.path / "grown").read_bytes() == LARGE() + OTHER()[:MIB]


def test_append_to_changed(mount: Mount, each_store: Store) -> None:
    _append_to_changed(mount, each_store, 5)


def test_append_to_changed_large(mount: Mount, each_store: Store) -> None:
    _append_to_changed(mount, each_store, LARGE_BYTES)


def _append_to_changed(mount: Mount, store: Store, size: int) -> None:
    """Append to an object that is replaced after the open."""
    name = f"contended-{size}"
    store.put(name, LARGE()[:size])
    errors = []
    file = (mount.path / name).open("ab", buffering=0)
    store.put(name, OTHER()[:size])
    errors.append(errno_of(lambda: file.write(b"x")))
    errors.append(errno_of(file.close))
    assert errno.ESTALE in errors
    assert content(store, name) == OTHER()[:size]


def test_attributes_kept(keeping: Mount, staging: Mount) -> None:
    path = keeping.path / "kept-attributes"
    path.write_bytes(b"x")
    path.chmod(0o640)
    os.utime(path, ns=(1_500_000_000_000_000_000,) * 2)
    for shown in (path.stat(), (staging.path / path.name).stat()):
        assert shown.st_mode & 0o777 == 0o640
        assert shown.st_mtime_ns == 1_500_000_000_000_000_000


def test_staged(staging: Mount, each_store: Store) -> None:
    each_store.put("changed", LARGE())
    with (staging.path / "changed").open("r+b") as file:
        file.seek(MIB)
        file.write(b"changed in the middle")
    expected = bytearray(LARGE())
    expected[MIB : MIB + 21] = b"changed in the middle"
    eventually(lambda: content(each_store, "changed") == bytes(expected))
    assert (staging.path / "changed").read_bytes() == expected


# --- Checksums ---


def test_checksums_stored(mount: Mount, each_store: Store) -> None:
    (mount.path / "summed").write_bytes(b"hello")
    head = each_store.client().head_object(
        Bucket=each_store.bucket, Key="summed", ChecksumMode="ENABLED"
    )
    assert head.get("ChecksumCRC32C") == "mnG7TA=="


def test_checksums_verified(mount: Mount) -> None:
    (mount.path / "verified").write_bytes(b"hello")
    before = mount.counters()["checksums_verified"]
    assert (mount.path / "verified").read_bytes() == b"hello"
    assert mount.counters()["checksums_verified"] == before + 1
