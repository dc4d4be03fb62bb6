"""The tree in a flat bucket: which keys are files, directories, or hidden. Pure.

`/` splits a key into names; every common prefix is a directory. Two more rules make this a file
system:

* A key is hidden if it needs a name that Linux does not allow: an empty segment (`a//b`), `.` and
  `..`, a NUL, more than 255 bytes. A key that ends in `/` is a directory marker: it makes its
  directory exist and is no entry itself.
* A directory shadows a file of the same name (the objects `a` and `a/b`: `a` is a directory).

Names and keys are bytes. A directory's *prefix* is "" for the root of the bucket; any other ends in
`/`.
"""

from typing import NamedTuple

from mountpoint.errors import NO_OPTION, BadArgument, NameTooLong
from mountpoint.s3.client import ListPage, ObjectInfo

#: NAME_MAX, linux/limits.h
MAX_NAME_BYTES = 255

#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
MAX_KEY_BYTES = 1024

#: Keys requested by a single lookup: more than usually share a name's start (`a`, `a-1`, `a.txt`).
FEW_KEYS = 20


class Entry(NamedTuple):
    """A child of a directory: a file with its object, or a directory (`info` is None)."""

    name: bytes
    info: ObjectInfo | None

    @property
    def is_directory(self) -> bool:
        return self.info is None

    @property
    def has_version(self) -> bool:
        """Whether the entry suffices for a lookup: some stores list no ETags."""
        return self.info is None or self.info.etag != ""


def is_name(segment: bytes) -> bool:
    """Whether Linux allows a file of this name."""
    return (
        0 < len(segment) <= MAX_NAME_BYTES
        and segment not in (b".", b"..")
        and b"\0" not in segment
        and b"/" not in segment
    )


def check_new(prefix: bytes, name: bytes) -> None:
    """Raise NameTooLong or BadArgument unless S3 allows `name`, perhaps with a "/", there."""
    size = len(prefix) + len(name)
    if len(name.rstrip(b"/")) > MAX_NAME_BYTES or size > MAX_KEY_BYTES:
        raise NameTooLong(f"{size} bytes; a key may have at most {MAX_KEY_BYTES}")
    try:
        name.decode()
    except UnicodeDecodeError:
        raise BadArgument(
            "S3's keys are UTF-8, but this name is not", f"{NO_OPTION}choose another name"
        ) from None


def decide(name: bytes, head: ObjectInfo | None, below: bool) -> Entry | None:
    """Return the entry of `name` from its object, if any, and whether keys exist below `key/`."""
    if below:
        return Entry(name, None)
    return None if head is None else Entry(name, head)


def decide_by_page(page: ListPage, key: bytes, name: bytes) -> tuple[bool, Entry | None]:
    """Return whether a LIST of the keys that begin with `key` settles the name, and its entry.

    The object itself comes first. A prefix that shadows it comes after all that sorts before "/"
    (`a`, `a-1`, `a.txt`, `a/`), perhaps on a later page.
    """
    folder = key + b"/"
    if folder in page.prefixes:
        return True, Entry(name, None)
    last = max([info.key for info in page.objects[-1:]] + page.prefixes[-1:], default=b"")
    if page.skipped or not (page.next_token is None or last > folder):
        return False, None
    if page.objects and page.objects[0].key == key:
        entry = Entry(name, page.objects[0])
        return (True, entry) if entry.has_version else (False, None)
    return True, None


class DirectoryMerge:
    """Turns the pages of one directory's listing into its entries, each name once.

    Feed the pages in order. Each call returns the entries that are now certain, in S3's order. A
    file is certain once the listing has passed `name/`: a prefix that shadows it comes later, after
    all the keys in between (`a`, `a-1`, `a-2`, …, `a/`). Until then the file and the entries after
    it are held back.

    Other stores list in other orders. A shadowing prefix may then come too late to hide the file,
    but no name is ever returned twice.
    """

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._held: list[Entry] = []
        self._seen: set[bytes] = set()  # names returned or held back
        self.unnameable = 0  #: keys hidden because Linux does not allow their names

    @property
    def holds(self) -> int:
        """The number of entries held back."""
        return len(self._held)

    def feed(self, page: ListPage) -> list[Entry]:
        """Take the next page; return the entries that are now certain."""
        fresh = self._directories(page) + self._files(page)
        fresh.sort(key=_key)
        self._held += [entry for _, entry in fresh]
        cut = len(self._held)
        if page.next_token is not None:
            last_keys = [info.key for info in page.objects[-1:]] + page.prefixes[-1:]
            cut = self._certain(max(last_keys, default=b""))
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain

    def _directories(self, page: ListPage) -> list[tuple[bytes, Entry]]:
        fresh = []
        for prefix in page.prefixes:
            name = self._name(prefix, prefix[len(self._prefix) : -1])
            if name in self._seen:
                held = len(self._held)
                self._held = [entry for entry in self._held if entry.name != name]
                if len(self._held) == held:
                    continue  # already returned
            if name:
                self._seen.add(name)
                fresh.append((prefix, Entry(name, None)))
        return fresh

    def _files(self, page: ListPage) -> list[tuple[bytes, Entry]]:
        fresh = []
        for info in page.objects:
            name = self._name(info.key, info.key[len(self._prefix) :])
            if name and name not in self._seen:
                self._seen.add(name)
                fresh.append((info.key, Entry(name, info)))
        return fresh

    def _name(self, key: bytes, name: bytes) -> bytes:
        """Return `name`, or b"" if Linux does not allow it."""
        if is_name(name):
            return name
        self.unnameable += key != self._prefix  # the directory's own marker is no child
        return b""

    def _certain(self, passed: bytes) -> int:
        """Return the number of held entries that no later page can shadow."""
        for index, entry in enumerate(self._held):
            if entry.info is not None and entry.info.key + b"/" > passed:
                return index
        return len(self._held)


def _key(item: tuple[bytes, Entry]) -> bytes:
    return item[0]
