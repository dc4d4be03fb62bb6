"""Listings with attributes: structures of the kernel's protocol (linux/fuse.h)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.fs.attributes import Attributes
from mountpoint.fs.inodes import InodeNumber
from mountpoint.fuse import entries
from mountpoint.fuse._listings import merged

ENTRY_OUT_BYTES = 128
NAMES = st.lists(st.binary(min_size=1, max_size=255), max_size=20)


def listing(names: list[bytes]) -> bytes:
    """Return libfuse's answer to READDIR: struct fuse_dirent, each padded to 8 bytes."""
    found = b""
    for number, name in enumerate(names, 1):
        dirent = struct.pack("<QQII", 1000 + number, number, len(name), 8) + name
        found += dirent + bytes(-len(dirent) % 8)
    return found


def split(answer: bytes) -> list[tuple[bytes, int, int, bytes]]:
    """Return the attributes, inode, next position and name of each struct fuse_direntplus."""
    found = []
    while answer:
        inode, position, size, _ = struct.unpack_from("<QQII", answer, ENTRY_OUT_BYTES)
        start = ENTRY_OUT_BYTES + 24
        found.append((answer[:ENTRY_OUT_BYTES], inode, position, answer[start : start + size]))
        answer = answer[start + size + -(start + size) % 8 :]
    return found


@given(NAMES)
def test_each_entry_has_its_attributes(names: list[bytes]) -> None:
    """In front of each entry are its attributes; the sizes are those that `entries` says."""
    attributes = [bytes([number]) * ENTRY_OUT_BYTES for number in range(len(names))]
    answer = merged(listing(names), b"".join(attributes))
    assert split(answer) == [
        (attributes[number], 1001 + number, number + 1, name) for number, name in enumerate(names)
    ]
    assert len(answer) == sum(map(entries.size_of, names))
    assert all(entries.size_of(name) >= entries.MIN_BYTES for name in names)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_attributes_of_other_entries(count: int) -> None:
    """They are left out, and the kernel looks all names up."""
    answer = merged(listing([b"a", b"b"]), b"x" * count * ENTRY_OUT_BYTES)
    assert [each[0] for each in split(answer)] == [entries.UNKNOWN] * 2


@given(NAMES, st.integers(min_value=1, max_value=200))
def test_an_incomplete_listing(names: list[bytes], missing: int) -> None:
    """It is an error, and no byte beyond its end is read."""
    whole = listing(names)
    cut = whole[:-missing]
    complete = {len(listing(names[:count])) for count in range(len(names) + 1)}
    if len(cut) in complete:
        merged(cut, b"")
    else:
        with pytest.raises(ValueError, match="not a listing"):
            merged(cut, b"")


def test_attributes_of_an_inode() -> None:
    """struct fuse_entry_out: numbers, validity, struct fuse_attr."""
    attributes = Attributes(
        inode=InodeNumber(77),
        mode=0o100640,
        links=1,
        size_bytes=1025,
        mtime_ns=-1,
        ctime_ns=3_000_000_004,
        uid=5,
        gid=6,
        ttl_s=0.25,
    )
    found = struct.unpack("<QQQQIIQQQqqqIIIIIIIIII", entries.entry_out(attributes))
    assert found == (
        *(77, 0, 0, 0, 250_000_000, 250_000_000),
        *(77, 1025, 3, -1, -1, 3, 999_999_999, 999_999_999, 4),
        *(0o100640, 1, 5, 6, 0, 4096, 0),
    )
