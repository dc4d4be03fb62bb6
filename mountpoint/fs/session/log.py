"""A log of what the kernel knows of this mount by number, in memory that outlives the process.

The kernel uses numbers of inodes and handles, which mean nothing to another process: it needs to
know the directories that the kernel holds, and what is open. A file that is not open needs nothing:
if its number is not known, ESTALE makes the kernel look its name up again.

Each line is an array of JSON: the latest one of a kind and number counts. It is copied to a mapped
memfd, which the keeper holds too, and what follows is zero. So a line is there if the process is
killed right after, and one that is cut is not JSON. A write(2) would take longer, and give the
interpreter to another thread. When the memfd is full, the lines that count go to another one, which
the keeper is told of (`publish`).

Bytes (keys and names) are text in Latin-1 here.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mountpoint.native._journal import Journal
from mountpoint.s3.client import ObjectInfo

#: Fields of a line; their names are `recovery`'s.
Fields = dict[str, Any]

#: What a record is found by.
Number = int | str

#: json.dumps makes an encoder at each call that is not a plain one.
_encode = json.JSONEncoder(separators=(",", ":")).encode

#: A string in JSON.
quoted = json.encoder.encode_basestring_ascii

#: The size of a memfd, at least; and it has room for twice as much as it begins with.
MIN_BYTES = 1 << 20


class SessionLog:
    """The log of one mount. Thread-safe. A record has a number, or a name, unique in its `kind`.

    `file` is the memfd that is written at present; at first an empty one, or that of a process that
    has died. `publish` is called with the descriptor of each new one, before the old one is closed.
    `journal` appends to the memfd; native code does so, too, and `beside` returns its lines that
    count.
    """

    def __init__(self, file: int, publish: Callable[[int], None]) -> None:
        # dependencies
        self._publish = publish
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self.file = file
        self.journal = Journal()
        self.beside: Callable[[], bytes] = bytes
        self._lines: dict[tuple[str, Number], bytes] = {}
        text = _text(file)
        for kind, number, line in _parsed(text):
            if line:
                self._lines[kind, number] = line
            else:
                self._lines.pop((kind, number), None)
        if os.fstat(file).st_size < MIN_BYTES:
            os.ftruncate(file, MIN_BYTES)
        self.journal.map(file, len(text))
        if text:
            self._write(b"\n")  # ends a line that was cut

    def records(self, kind: str) -> dict[Any, Fields]:
        """Return the fields of all records of a kind by their numbers, oldest first."""
        with self._lock:
            return {
                number: json.loads(line)[2]
                for (its, number), line in self._lines.items()
                if its == kind
            }

    def note(self, kind: str, number: Number, fields: Fields) -> None:
        """Add a record, or replace it."""
        self.note_line(kind, number, _encode((kind, number, fields)).encode() + b"\n")

    def note_line(self, kind: str, number: Number, line: bytes) -> None:
        """Add a record by its line, or replace it."""
        with self._lock:
            self._lines[kind, number] = line
            self._write(line)

    def drop(self, kind: str, number: Number) -> None:
        """Remove a record, if there is one."""
        with self._lock:
            if self._lines.pop((kind, number), None) is not None:
                self._write(_encode((kind, number)).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        """Append a line for what has changed in `_lines`."""
        if not self.journal.append(line):
            self._rewrite()

    def _rewrite(self) -> None:
        self.journal.seal()  # what native code would append now, it leaves to Python
        text = b"".join(self._lines.values()) + self.beside()
        file = new_log(2 * len(text))
        with open(file, "wb", closefd=False) as memory:
            memory.write(text)
        self._publish(file)
        self.journal.map(file, len(text))
        os.close(self.file)
        self.file = file


def text_of(data: bytes) -> str:
    """Return bytes as text for a line."""
    return data.decode("latin-1")


def bytes_of(text: str) -> bytes:
    """Return the bytes of `text_of`."""
    return text.encode("latin-1")


def fields_of(version: ObjectInfo) -> Fields:
    """Return an object's version as fields."""
    return {
        "key": text_of(version.key),
        "size_bytes": version.size_bytes,
        "mtime_ns": version.mtime_ns,
        "etag": version.etag,
        "storage_class": version.storage_class,
        "restored": version.restored,
        "metadata": None if version.metadata is None else dict(version.metadata),
    }


def json_of(version: ObjectInfo) -> str:
    """Return `fields_of` in JSON. Written by hand, because each prepared file needs it."""
    metadata = "null" if version.metadata is None else _encode(dict(version.metadata))
    return (
        f'{{"key":{quoted(text_of(version.key))},"size_bytes":{version.size_bytes},'
        f'"mtime_ns":{version.mtime_ns},"etag":{quoted(version.etag)},'
        f'"storage_class":{quoted(version.storage_class)},'
        f'"restored":{"true" if version.restored else "false"},"metadata":{metadata}}}'
    )


def version_of(fields: Fields | None) -> ObjectInfo | None:
    """Return the version of `fields_of`; None if there are no fields."""
    if fields is None:
        return None
    return ObjectInfo(**fields | {"key": bytes_of(fields["key"])})


def new_log(size_bytes: int = 0) -> int:
    """Return the descriptor of an empty log with room for so much, or more."""
    file = os.memfd_create("mount-s3 session", os.MFD_CLOEXEC)
    os.ftruncate(file, max(size_bytes, MIN_BYTES))
    return file


def _text(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0).rstrip(b"\0")


def _parsed(text: bytes) -> Iterator[tuple[str, Number, bytes]]:
    """Yield kind and number of each line, and the line; b"" if it removes the record."""
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError):  # it may be cut
            match json.loads(line):
                case [str(kind), int(number) | str(number), dict()]:
                    yield kind, number, line
                case [str(kind), int(number) | str(number)]:
                    yield kind, number, b""
