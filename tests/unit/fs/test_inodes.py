"""The inode table: one number per version, kept as long as kernel or handles hold it."""

import gc
import hashlib
import threading
import tracemalloc
from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from mountpoint.errors import StaleInode
from mountpoint.fs import inodes
from mountpoint.fs.inodes import ROOT, SHORT_BITS, Inode, InodeNumber, InodeTable
from mountpoint.fs.posix_metadata import NOTHING, FileAttributes, formatted
from mountpoint.listing.tree import DirectoryMerge, Entry
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.wire import reading
from mountpoint.s3.wire.reading import parse_list
from tests.soak import examples

#: The most memory per known name, including everything: a million take 330 MB.
MAX_BYTES_EACH = 345


def file(name: bytes, version: int = 1, size: int = 1, mtime_ns: int = 0) -> Entry:
    return Entry(name, ObjectInfo(b"p/" + name, size, mtime_ns, f'"{version}"'))


def directory(name: bytes) -> Entry:
    return Entry(name, None)


def test_the_root() -> None:
    """The root is number 1, its own parent, the prefix, and never forgotten."""
    table = InodeTable(b"p/")
    root = table.get(ROOT)
    assert (root.number, root.parent, root.key, root.is_directory) == (1, None, b"p/", True)
    table.forget(ROOT, 1000)
    assert table.get(ROOT) is root
    table.check()


def test_keys() -> None:
    """An inode's key is its object's key, or its directory's prefix."""
    table = InodeTable(b"p/")
    below = table.looked_up(table.root, directory(b"d"), 0.0)
    inode = table.looked_up(below, file(b"f"), 0.0)
    assert (below.key, below.directory, below.name) == (b"p/d/", b"p/", b"d")
    assert (inode.key, inode.directory, inode.name) == (b"p/d/f", b"p/d/", b"f")
    assert inode.parent is below


def test_same_version_same_number() -> None:
    """A lookup of the same version gives the same inode."""
    table = InodeTable(b"")
    first = table.looked_up(table.root, file(b"a"), 1.0)
    again = table.looked_up(table.root, file(b"a", mtime_ns=7), 2.0)
    assert again is first
    assert first.lookups == 2
    assert first.fresh_until_s == 2.0
    assert first.info is not None
    assert first.info.mtime_ns == 7, "a copy of equal content has its own time"


def test_freshness_never_goes_back() -> None:
    """A late, older answer does not shorten the validity of a newer one."""
    table = InodeTable(b"")
    inode = table.looked_up(table.root, file(b"a"), 5.0)
    assert table.looked_up(table.root, file(b"a"), 3.0) is inode
    assert inode.fresh_until_s == 5.0


@pytest.mark.parametrize(
    "other", [file(b"a", 2), file(b"a", 1, size=2), directory(b"a")], ids=["etag", "size", "kind"]
)
def test_another_version_is_another_inode(other: Entry) -> None:
    """Another ETag, size or kind is a new number; the old inode lives while it is held."""
    table = InodeTable(b"")
    old = table.looked_up(table.root, file(b"a"), 0.0)
    new = table.looked_up(table.root, other, 0.0)
    assert new.number != old.number
    assert table.get(old.number) is old
    assert table.number_of(table.root, other) == new.number
    assert table.number_of(table.root, file(b"a")) == old.number
    table.forget(old.number, 1)
    with pytest.raises(StaleInode):
        table.get(old.number)
    assert table.get(new.number) is new
    assert table.number_of(table.root, other) == new.number
    table.check()


def test_a_directory_that_is_removed_and_made_again() -> None:
    """It is another inode, with its own number for as long as it is known."""
    table = InodeTable(b"")
    old = table.looked_up(table.root, directory(b"d"), 0.0)
    table.opened(old)
    table.removed(table.root, b"d")
    new = table.looked_up(table.root, directory(b"d"), 0.0)
    assert new.number != old.number
    assert table.looked_up(table.root, directory(b"d"), 0.0) is new
    assert table.get(old.number) is old
    table.check()
    table.forget(old.number, 1)
    table.released(old)
    table.check()
    assert table.looked_up(table.root, directory(b"d"), 0.0) is new
    table.forget(new.number, 3)
    assert table.looked_up(table.root, directory(b"d"), 0.0).number == old.number
    table.check()


def test_a_directory_is_renamed_to_a_removed_one() -> None:
    """The new directory is found by the name, and not the removed one, which a program holds."""
    table = InodeTable(b"")
    old = table.looked_up(table.root, directory(b"d"), 0.0)
    other = table.looked_up(table.root, directory(b"e"), 0.0)
    table.removed(table.root, b"d")
    table.moved(other, table.root, b"d")
    assert table.looked_up(table.root, directory(b"d"), 0.0) is other
    table.forget(other.number, 2)
    assert table.looked_up(table.root, directory(b"d"), 0.0) not in (old, other)
    table.check()


def test_a_removed_directory_below_a_renamed_one() -> None:
    """A rename of the directory above does not bring it back."""
    table = InodeTable(b"")
    above = table.looked_up(table.root, directory(b"a"), 0.0)
    old = table.looked_up(above, directory(b"d"), 0.0)
    table.removed(above, b"d")
    new = table.looked_up(above, directory(b"d"), 0.0)
    table.moved(above, table.root, b"b")
    assert table.looked_up(above, directory(b"d"), 0.0) is new
    assert old.key == new.key == b"b/d/"
    table.check()


def test_an_inode_that_is_forgotten_while_it_is_renamed() -> None:
    """It leaves no trace, and does not take along a newer inode of its number."""
    table = InodeTable(b"")
    old = table.looked_up(table.root, file(b"a"), 0.0)
    table.forget(old.number, 1)
    new = table.looked_up(table.root, file(b"a"), 0.0)
    assert new.number == old.number
    table.moved(old, table.root, b"b")
    table.became(old, ObjectInfo(b"b", 1, 0, '"2"'), 0.0)
    table.check()
    table.opened(old)
    table.released(old)
    assert table.get(new.number) is new
    table.check()


def test_numbers_of_listed_names() -> None:
    """A listed name has its lookup's number, in every mount; all numbers differ."""
    table, other_mount = InodeTable(b""), InodeTable(b"")
    entries = [file(b"a"), file(b"a", 2), file(b"a", size=2), file(b"b"), directory(b"a")]
    numbers = [table.number_of(table.root, entry) for entry in entries]
    assert len(set(numbers)) == len(entries)
    assert min(numbers) > ROOT
    assert len(table) == 1, "listing holds nothing"
    assert [other_mount.number_of(other_mount.root, entry) for entry in entries] == numbers
    assert [table.looked_up(table.root, entry, 0.0).number for entry in entries] == numbers


def test_numbers_that_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two inodes with equal digests have different numbers."""
    monkeypatch.setattr(inodes, "digest", lambda key, info, bits: 1000)
    table = InodeTable(b"")
    one = table.looked_up(table.root, file(b"a"), 0.0)
    two = table.looked_up(table.root, file(b"b"), 0.0)
    assert one.number != two.number
    assert table.looked_up(table.root, file(b"b"), 0.0) is two
    assert table.number_of(table.root, file(b"a")) == one.number
    table.check()


def test_short_numbers() -> None:
    """Short numbers fit into 32 bits, match the listing, and are the same in every mount."""
    table, other_mount = InodeTable(b"", SHORT_BITS), InodeTable(b"", SHORT_BITS)
    entries = [file(b"%d" % each) for each in range(1000)]
    numbers = [table.number_of(table.root, entry) for entry in entries]
    assert 1 << 31 < max(numbers) < 1 << 32
    assert [other_mount.number_of(other_mount.root, entry) for entry in entries] == numbers
    assert [table.looked_up(table.root, entry, 0.0).number for entry in entries] == numbers
    table.check()


def test_short_numbers_go_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last number comes the first one above the root's."""
    monkeypatch.setattr(inodes, "digest", lambda key, info, bits: (1 << bits) - 1)
    table = InodeTable(b"", SHORT_BITS)
    found = [table.looked_up(table.root, file(name), 0.0).number for name in (b"a", b"b", b"c")]
    assert found == [(1 << 32) - 1, ROOT + 1, ROOT + 2]
    table.check()


@pytest.mark.parametrize("storage_class", ["STANDARD", "é\n\udcff", ""])
def test_inode_returns_its_object(storage_class: str) -> None:
    """An inode returns S3's description of its object, with any values."""
    table = InodeTable(b"p/")
    below = table.looked_up(table.root, directory(b"d"), 0.0)
    info = ObjectInfo(b"p/d/\xff", (1 << 63) - 1, 1 << 60, "e", storage_class, restored=True)
    inode = table.looked_up(below, Entry(b"\xff", info), 0.0)
    assert inode.info == info
    assert inode.stored == (info.size_bytes, info.mtime_ns, NOTHING)
    assert (below.info, below.stored) == (None, None)


@pytest.mark.parametrize(
    "attributes",
    [
        None,
        NOTHING,
        FileAttributes(0o7777, (1 << 32) - 2, 0, (1 << 63) - 1_000_000_000),
        FileAttributes(0, None, 0, None),
        FileAttributes(None, 7, None, 0),
    ],
)
def test_inode_keeps_file_attributes(attributes: FileAttributes | None) -> None:
    """An inode has its object's kept attributes, and whether they are known."""
    table = InodeTable(b"")
    metadata = None if attributes is None else formatted(attributes)
    info = ObjectInfo(b"a", 1, 2, '"e"', "GLACIER", restored=True, metadata=metadata)
    inode = table.looked_up(table.root, Entry(b"a", info), 5.0)
    assert inode.info == info
    assert inode.info is not None
    assert inode.info.metadata == metadata
    assert inode.stored == (1, 2, attributes or NOTHING)
    listed = Entry(b"a", ObjectInfo(b"a", 1, 2, '"e"', "GLACIER"))
    assert inode.is_version(listed), "metadata is no part of the version"
    told = None if attributes is None else Entry(b"a", info)
    assert table.with_metadata(table.root, listed, 4.0) == told
    assert table.with_metadata(table.root, listed, 5.0) is None
    assert table.with_metadata(table.root, file(b"a", 2), 4.0) is None


def test_the_longest_key() -> None:
    """A file below as many directories as a key can have is found by its key, and forgotten."""
    table = InodeTable(b"")
    path = [table.root]
    for _ in range(511):
        path.append(table.looked_up(path[-1], directory(b"d"), 0.0))
    inode = table.looked_up(path[-1], file(b"f"), 0.0)
    assert inode.key == b"d/" * 511 + b"f"
    for each in path[1:]:
        table.forget(each.number, 1)
    assert inode.directory == b"d/" * 511
    assert len(table) == 2


def listing(prefix: bytes, names: range) -> bytes:
    """Return a LIST answer: names of 30 bytes, ETags of 32 digits, each file with its own time."""
    contents = "".join(
        f"<Contents><Key>{prefix.decode()}part-{number:08}-c000.snappy.pq.z</Key>"
        f"<LastModified>2026-11-{1 + number % 28:02}T12:{number // 60 % 60:02}:{number % 60:02}Z"
        f"</LastModified><ETag>&quot;{hashlib.md5(b'%d' % number).hexdigest()}&quot;</ETag>"
        f"<Size>{number * 1000}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for number in names
    )
    return (
        f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
        f"{contents}</ListBucketResult>"
    ).encode()


@pytest.mark.slow
def test_memory_of_known_names() -> None:
    """A million known names take a third of a gigabyte; forgotten ones take nothing."""
    prefix = b"dataset-2026-11/partition-001/"
    bodies = [listing(prefix, range(start, start + 1000)) for start in range(0, 20_000, 1000)]
    table = InodeTable(prefix)
    numbers = array("Q")

    def look_up(body: bytes, fresh_until_s: float) -> None:
        for entry in DirectoryMerge(prefix).feed(parse_list(body, prefix)):
            assert len(entry.name) == 30
            numbers.append(table.looked_up(table.root, entry, fresh_until_s).number)

    def forget() -> None:
        for number in numbers:
            table.forget(InodeNumber(number), 1)
        table.compact()
        del numbers[:]

    look_up(bodies[0], 0.0)  # objects that are made once
    forget()
    gc.collect()
    tracemalloc.start()
    try:
        for index, body in enumerate(bodies):
            look_up(body, float(index))
        held_bytes, _ = tracemalloc.get_traced_memory()
        held_bytes -= numbers.buffer_info()[1] * numbers.itemsize
        forget()
        gc.collect()  # XML parsers refer to themselves
        reading.iso_date_ns.cache_clear()  # the last 1,000 dates
        left_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes / 20_000 <= MAX_BYTES_EACH
    assert left_bytes <= 4096


def test_names_in_different_directories() -> None:
    """The same name in two directories is two inodes."""
    table = InodeTable(b"")
    one = table.looked_up(table.root, directory(b"d"), 0.0)
    two = table.looked_up(table.root, directory(b"e"), 0.0)
    first = table.looked_up(one, file(b"a"), 0.0)
    second = table.looked_up(two, file(b"a"), 0.0)
    assert first.number != second.number
    table.forget(first.number, 1)
    assert table.number_of(two, file(b"a")) == second.number


def test_forget_counts() -> None:
    """An inode is dropped when the kernel has forgotten all its lookups, not before."""
    table = InodeTable(b"")
    for _ in range(3):
        inode = table.looked_up(table.root, file(b"a"), 0.0)
    table.forget(inode.number, 2)
    assert table.get(inode.number) is inode
    table.forget(inode.number, 1)
    with pytest.raises(StaleInode):
        table.get(inode.number)
    assert len(table) == 1
    table.forget(inode.number, 1)  # of an unknown inode: no effect
    table.check()


def test_an_open_handle_holds_its_inode() -> None:
    """A forgotten inode stays while it is open, until its last handle closes."""
    table = InodeTable(b"")
    inode = table.looked_up(table.root, file(b"a"), 0.0)
    table.opened(inode)
    table.opened(inode)
    table.forget(inode.number, 1)
    assert table.get(inode.number) is inode
    assert table.looked_up(table.root, file(b"a"), 0.0) is inode
    table.forget(inode.number, 1)
    table.released(inode)
    assert table.get(inode.number) is inode
    table.released(inode)
    with pytest.raises(StaleInode):
        table.get(inode.number)
    table.check()


def test_the_same_content_written_again() -> None:
    """Two new files that become the same version are forgotten in order."""
    table = InodeTable(b"p/")
    version = file(b"a")
    assert version.info is not None
    inodes = [table.create(table.root, b"a", 0) for _ in range(2)]
    for inode in inodes:
        table.became(inode, version.info, 0.0)
        table.check()
    assert table.number_of(table.root, version) == inodes[1].number
    for inode in inodes:
        table.released(inode)
        table.forget(inode.number, 1)
        table.check()
    assert len(table) == 1


class Kernel(RuleBasedStateMachine):
    """The actions of a kernel on a table, and the inodes that it still holds."""

    inodes = Bundle("inodes")
    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.table = InodeTable(b"p/")
        self.held: dict[InodeNumber, tuple[Entry, int]] = {}  # entry, lookups + opens
        self.numbers: dict[tuple[bytes, str | None], set[InodeNumber]] = {}

    @rule(
        target=inodes,
        name=st.sampled_from([b"a", b"b"]),
        version=st.integers(0, 2),
        fresh=st.floats(0, 10),
    )
    def lookup(self, name: bytes, version: int, fresh: float) -> Inode:
        entry = directory(name) if version == 0 else file(name, version)
        shown = self.table.number_of(self.table.root, entry)
        inode = self.table.looked_up(self.table.root, entry, fresh)
        known = self.held.get(inode.number)
        assert known is None or known[0] == entry, "a number never changes what it names"
        assert shown == inode.number
        self.held[inode.number] = (entry, 1 if known is None else known[1] + 1)
        return inode

    @rule(inode=consumes(inodes))
    def forget(self, inode: Inode) -> None:
        self.table.forget(inode.number, 1)
        self._drop(inode.number)

    @rule(target=handles, inode=inodes)
    def open(self, inode: Inode) -> Inode:
        self.table.opened(inode)
        entry, count = self.held[inode.number]
        self.held[inode.number] = (entry, count + 1)
        return inode

    @rule(inode=consumes(handles))
    def release(self, inode: Inode) -> None:
        self.table.released(inode)
        self._drop(inode.number)

    @rule(target=inodes, inode=consumes(inodes))
    def forget_and_look_again(self, inode: Inode) -> object:
        entry, _ = self.held[inode.number]
        self.forget(inode)
        again = self.table.looked_up(self.table.root, entry, 0.0)
        entry_count = self.held.get(again.number, (entry, 0))[1]
        self.held[again.number] = (entry, entry_count + 1)
        return multiple(again)

    @invariant()
    def holds_what_is_held(self) -> None:
        self.table.check()
        assert len(self.table) == 1 + len(self.held)
        for number, (entry, count) in self.held.items():
            inode = self.table.get(number)
            assert inode.is_version(entry)
            assert inode.lookups + inode.opens == count

    def _drop(self, number: InodeNumber) -> None:
        entry, count = self.held.pop(number)
        if count > 1:
            self.held[number] = (entry, count - 1)


TestKernel = Kernel.TestCase
TestKernel.settings = settings(deadline=None, max_examples=examples(25), stateful_step_count=30)


@pytest.mark.slow
def test_threads() -> None:
    """Lookups and forgets of the same names from several threads are counted exactly."""
    table = InodeTable(b"")
    start = threading.Barrier(6)

    def work(seed: int) -> None:
        start.wait()
        for index in range(2000):
            inode = table.looked_up(table.root, file(b"%d" % (index % 3), seed % 2), 0.0)
            table.opened(inode)
            table.number_of(table.root, file(b"0"))
            table.released(inode)
            table.forget(inode.number, 1)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table.check()
    assert len(table) == 1
