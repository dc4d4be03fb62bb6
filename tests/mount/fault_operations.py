"""The operations that tests/mount/fault_table.py combines with faults.

Each is a generator: it prepares what it needs, yields, and does the operation. The fault begins at
the yield. An operation raises the OSError that its program would get, and AssertionError for wrong
bytes or a wrong result.
"""

import itertools
import mmap
import os
import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.conftest import Store
from tests.faulty_proxy import Exchange
from tests.mount.mounting import content
from tests.random_bytes import random_bytes

#: Two parts of an upload with `--write-part-size 5242880`.
LARGE = partial(random_bytes, 7, 6 << 20)
OLD, NEW = b"old" * 2000, b"new" * 3000


def CHANGED() -> bytes:
    """Return the large file after the operation `change`."""
    return LARGE()[: len(NEW)] + NEW + LARGE()[2 * len(NEW) :]


PIECE_BYTES = 64 << 10
#: After sixteen reads at random places the lane sends its own requests.
PLACES = 24


@dataclass(frozen=True)
class Cell:
    """A directory of one cell's own: where it is mounted, and where its objects are."""

    path: Path
    store: Store
    prefix: str

    def put(self, name: str, body: bytes) -> Path:
        """Put an object; return the path of its file."""
        client, bucket = self.store.client(), self.store.bucket
        client.put_object(
            Bucket=bucket, Key=self.prefix + name, Body=body, ChecksumAlgorithm="CRC32C"
        )
        return self.path / name

    def expect(self, name: str, *bodies: bytes | None) -> None:
        """Raise AssertionError unless the bucket has one of these objects; None: no object."""
        found = content(self.store, self.prefix + name)
        assert found in bodies, f"{name} is not what it should be"


Steps = Generator[None]


def look_up(cell: Cell) -> Steps:
    path = cell.put("old", OLD)
    yield
    assert path.stat().st_size == len(OLD)


def list_directory(cell: Cell) -> Steps:
    for name in ("a", "b"):
        cell.put(f"sub/{name}", OLD)
    (cell.path / "sub").stat()
    yield
    assert sorted(os.listdir(cell.path / "sub")) == ["a", "b"]


def read_small(cell: Cell) -> Steps:
    path = cell.put("old", OLD)
    path.stat()
    yield
    assert path.read_bytes() == OLD, "wrong bytes"


def read_large(cell: Cell) -> Steps:
    path = cell.put("large", LARGE())
    path.stat()
    yield
    assert path.read_bytes() == LARGE(), "wrong bytes"


def read_at_random(cell: Cell) -> Steps:
    source = random.Random(cell.prefix)
    places = source.sample(range(len(LARGE()) // PIECE_BYTES), PLACES * 2)
    descriptor = os.open(cell.put("large", LARGE()), os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, PIECE_BYTES)

    def read(place: int) -> None:
        offset = place * PIECE_BYTES
        assert os.preadv(descriptor, [buffer], offset) == PIECE_BYTES
        assert buffer[:] == LARGE()[offset : offset + PIECE_BYTES], "wrong bytes"

    try:
        for place in places[:PLACES]:
            read(place)
        yield
        for place in places[PLACES:]:
            read(place)
    finally:
        os.close(descriptor)


def write(cell: Cell, name: str, body: bytes, mode: str = "wb") -> None:
    """Write a file. Unlike the with statement, it closes a file once, and reports that error."""
    flags = {"wb": os.O_CREAT | os.O_TRUNC, "ab": os.O_APPEND}[mode]
    descriptor = os.open(cell.path / name, os.O_WRONLY | flags)
    try:
        for start in range(0, len(body), 1 << 20):
            os.write(descriptor, body[start : start + (1 << 20)])
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)


def write_small(cell: Cell) -> Steps:
    yield
    write(cell, "new", NEW)
    cell.expect("new", NEW)


def write_large(cell: Cell) -> Steps:
    yield
    write(cell, "new", LARGE())
    cell.expect("new", LARGE())


def replace(cell: Cell) -> Steps:
    cell.put("old", OLD).stat()
    yield
    write(cell, "old", NEW)
    cell.expect("old", NEW)


def append(cell: Cell) -> Steps:
    cell.put("old", OLD).stat()
    yield
    write(cell, "old", NEW, "ab")
    cell.expect("old", OLD + NEW)


def change(cell: Cell) -> Steps:
    path = cell.put("large", LARGE())
    path.stat()
    yield
    write_at(path, len(NEW), NEW)
    cell.expect("large", CHANGED())


def write_at(path: Path, offset: int, body: bytes) -> None:
    """Change some bytes of a file; report the first error."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.pwrite(descriptor, body, offset)
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)


def rename(cell: Cell) -> Steps:
    path = cell.put("old", OLD)
    path.stat()
    yield
    path.rename(cell.path / "new")
    cell.expect("old", None)
    cell.expect("new", OLD)


def remove(cell: Cell) -> Steps:
    path = cell.put("old", OLD)
    path.stat()
    yield
    path.unlink()
    cell.expect("old", None)


def make_directory(cell: Cell) -> Steps:
    yield
    (cell.path / "new").mkdir()
    assert (cell.path / "new").is_dir()


def remove_directory(cell: Cell) -> Steps:
    (cell.path / "sub").mkdir()
    yield
    (cell.path / "sub").rmdir()
    assert not (cell.path / "sub").exists()


# --- the requests that a fault without end strikes ---


def is_put(exchange: Exchange) -> bool:
    return exchange.method == "PUT"


def is_beginning(exchange: Exchange) -> bool:
    return exchange.method == "POST" and "uploadId=" not in exchange.target


def is_completion(exchange: Exchange) -> bool:
    return exchange.method == "POST" and "uploadId=" in exchange.target


def is_delete(exchange: Exchange) -> bool:
    return exchange.method == "DELETE"


def is_list(exchange: Exchange) -> bool:
    return exchange.is_list


def is_data(exchange: Exchange) -> bool:
    return exchange.is_data


@dataclass(frozen=True)
class Operation:
    """An operation, and the requests that decide over it.

    `command` does the same in a shell. `leaves`: what the objects may be after a failure.
    """

    says: str
    steps: Callable[[Cell], Steps]
    decides: Callable[[Exchange], bool]
    command: str
    leaves: Mapping[str, tuple[bytes | None, ...]] = field(default_factory=dict)


DD = "dd status=none"
WRITE_LARGE = f"{DD} if=/dev/zero of=new bs=1M count=6"
READ_DIRECTLY = f"{DD} if=large iflag=direct bs=64k skip=9 count=1"
APPEND = f"{DD} if=/etc/passwd of=old oflag=append conv=notrunc"
CHANGE = f"{DD} if=/etc/passwd of=large conv=notrunc"
LARGE_OR_ABSENT = {"new": (LARGE(), None)}

OPERATIONS = {
    "stat": Operation("look a name up", look_up, is_list, "stat old"),
    "list": Operation("list a directory", list_directory, is_list, "ls sub"),
    "read small": Operation("read a small file", read_small, is_data, "cat old"),
    "read large": Operation("read a file of 6 MiB", read_large, is_data, "cat large"),
    "read random": Operation(
        "read at random places of it, with O_DIRECT", read_at_random, is_data, READ_DIRECTLY
    ),
    "write": Operation(
        "write a small file", write_small, is_put, "cp /etc/passwd new", {"new": (NEW, None)}
    ),
    "begin": Operation(
        "write a file in parts; the fault without end hits the beginning of the upload",
        write_large,
        is_beginning,
        WRITE_LARGE,
        LARGE_OR_ABSENT,
    ),
    "parts": Operation(
        "the same; it hits the parts", write_large, is_put, WRITE_LARGE, LARGE_OR_ABSENT
    ),
    "complete": Operation(
        "the same; it hits the completion", write_large, is_completion, WRITE_LARGE, LARGE_OR_ABSENT
    ),
    "replace": Operation(
        "replace a file", replace, is_put, "cp /etc/passwd old", {"old": (OLD, NEW)}
    ),
    "append": Operation("append to a file", append, is_put, APPEND, {"old": (OLD, OLD + NEW)}),
    "change": Operation(
        "with `--staged-writes`: change the file of 6 MiB in the middle",
        change,
        is_put,
        CHANGE,
        {"large": (LARGE(), CHANGED())},
    ),
    "rename": Operation("rename a file", rename, is_put, "mv old new", {"new": (OLD, None)}),
    "unlink": Operation("remove a file", remove, is_delete, "rm old", {"old": (OLD, None)}),
    "mkdir": Operation("make a directory", make_directory, is_list, "mkdir new"),
    "rmdir": Operation("remove a directory", remove_directory, is_list, "rmdir sub"),
}
#: What a mount with staged writes does differently; the last one only that can do.
STAGED = ("write", "begin", "parts", "complete", "replace", "append", "change")
STREAMED = tuple(name for name in OPERATIONS if name != "change")
#: The numbers of cells, which name their directories.
NUMBERS = itertools.count(1)
