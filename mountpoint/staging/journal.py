"""A journal on disk of the changes to a staged file that are not in S3: it survives the process.

Beside a changed file lies its journal. Its first line, in JSON, names the object; then each change
is a line.

    {"bucket": "b", "key": "k", "base_etag": "\\"...\\"", "base_size": 100}
    w 0 10;         bytes [0, 10) were written
    t 50;           the file was cut off, or extended, at 50
    f 10 20;        bytes [10, 20) were missing, and have been fetched

A write is noted after it was made, a cut before. So the file of a killed process has every write
that the process was told had succeeded, and `replay` says which bytes are there. A line without its
final semicolon is incomplete and is ignored. The journal is removed after the upload: a file
without a journal is in S3. The key is null once a program has removed the file, and still has it
open: then no object will come of it.

Lines are written but not synced: they survive the end of the process, not of the machine.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mountpoint.errors import StagingFull, staging_error
from mountpoint.staging.extents import Extents

SUFFIX = ".journal"
DESCRIPTION_SUFFIX = ".json"
#: The largest `off_t`.
SIZE_MAX_BYTES = (1 << 63) - 1
#: A journal of this many lines is rewritten if most of them are redundant.
WORTH_LINES = 1 << 16


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that a staged file will become, and the version that is its base.

    `key` None: it will become none, because it was removed while it was open.
    """

    bucket: str
    key: bytes | None
    base_etag: str | None
    base_size_bytes: int | None

    def as_json(self) -> dict[str, Any]:
        """Return it with JSON's types. Bytes of a key that are not UTF-8 become lone surrogates."""
        return {
            "bucket": self.bucket,
            "key": None if self.key is None else self.key.decode("utf-8", "surrogateescape"),
            "base_etag": self.base_etag,
            "base_size": self.base_size_bytes,
        }


class Journal:
    """The journal of the staged file at `path`. There is no file before the first `rewrite`.

    Not thread-safe: the staged file's lock guards it. All methods raise StagingFull or
    StagingFault.
    """

    def __init__(self, path: Path) -> None:
        # constants
        self._path = path.with_suffix(SUFFIX)
        # mutable
        self._fd = -1
        self._lines = 0

    @property
    def exists(self) -> bool:
        """Whether there is a journal on the disk."""
        return self._path.exists()

    def reopen(self) -> tuple[Subject, Extents]:
        """Go on with the journal of another process; return what it says. See `replay`."""
        found = replay(self._path)
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        text = os.pread(fd, os.fstat(fd).st_size, 0)
        os.ftruncate(fd, text.rfind(b"\n") + 1)  # or the next line would complete a cut one
        self._fd, self._lines = fd, text.count(b"\n")
        return found

    def wrote(self, start: int, stop: int) -> None:
        """Note a write."""
        self._append(f"w {start} {stop};\n")

    def truncates(self, size_bytes: int) -> None:
        """Note that the file is about to be cut off or extended."""
        self._append(f"t {size_bytes};\n")

    def is_long(self, extents: Extents) -> bool:
        """Whether it is worth rewriting."""
        return self._lines > WORTH_LINES and self._lines > 4 * len(extents.changed)

    def rewrite(self, subject: Subject, extents: Extents, *, fetched: bool) -> None:
        """Rewrite the journal for this state of the file.

        `fetched`: fetched bytes stay from now on, so the journal includes them.
        """
        lines = [json.dumps(subject.as_json()) + "\n"]
        lines.append(f"t {extents.base_stop};\nt {extents.size_bytes};\n")
        lines += [f"w {start} {stop};\n" for start, stop in extents.changed]
        lines += [f"f {start} {stop};\n" for start, stop in (extents.clean() if fetched else ())]
        new = self._path.with_suffix(".new")
        try:
            write_file(new, "".join(lines))
            fd = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                new.replace(self._path)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            raise staging_error(error) from error
        self.close()
        self._fd = fd
        self._lines = len(lines)

    def remove(self) -> None:
        """Remove journal and description: the file is in S3, or was discarded."""
        self.close()
        with suppress(OSError):  # the file stays without need, which is better than losing it
            self._path.unlink(missing_ok=True)
            self._path.with_suffix(DESCRIPTION_SUFFIX).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal; its file stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _append(self, line: str) -> None:
        self._lines += 1
        data = line.encode("ascii")
        try:
            if os.write(self._fd, data) < len(data):
                os.write(self._fd, b"\n")  # or the next line would complete this one
                raise StagingFull("the staging directory: no space for a line of a journal")
        except OSError as error:
            raise staging_error(error) from error


def write_file(path: Path, text: str) -> None:
    """Write a file that only its owner can read. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
        file.write(text)


def replay(path: Path) -> tuple[Subject, Extents]:
    """Return what the journal at `path` says. Raises OSError, and ValueError if it is invalid."""
    with path.open(encoding="ascii", errors="replace") as file:
        try:
            subject = _subject(json.loads(file.readline()))
        except RecursionError as error:
            raise ValueError(f"its first line is invalid: {error}") from error
        extents = Extents(subject.base_size_bytes)
        for line in file:
            if line.endswith(";\n"):
                kind, *numbers = line[:-2].split(" ")
                _apply(extents, kind, [_size(number) for number in numbers])
    return subject, extents


def _subject(fields: Any) -> Subject:
    match fields:
        case {
            "bucket": str(bucket),
            "key": str() | None as key,
            "base_etag": str() | None as etag,
            "base_size": int() | None as size_bytes,
        } if 0 <= (size_bytes or 0) <= SIZE_MAX_BYTES:
            key_bytes = None if key is None else key.encode("utf-8", "surrogateescape")
            return Subject(bucket, key_bytes, etag, size_bytes)
    raise ValueError("its first line is invalid")


def _size(text: str) -> int:
    size_bytes = int(text)
    if not 0 <= size_bytes <= SIZE_MAX_BYTES:
        raise ValueError(f"no file has the position {size_bytes}")
    return size_bytes


def _apply(extents: Extents, kind: str, numbers: list[int]) -> None:
    match kind, numbers:
        case "w", [start, stop]:
            extents.write(start, stop)
        case "t", [size_bytes]:
            extents.truncate(size_bytes)
        case "f", [start, stop]:
            for first, last in extents.missing(start, stop):
                extents.fetched(first, last)
        case _:
            raise ValueError(f"unknown entry '{kind} {numbers}'")


def description(data: Path, subject: Subject, extents: Extents) -> dict[str, Any]:
    """Return a description with which a user can recover the file at `data`."""
    missing = extents.missing(0, extents.size_bytes)
    return {
        **subject.as_json(),
        "file": data.name,
        "size": extents.size_bytes,
        "complete": not missing,
        "missing": [list(pair) for pair in missing],
        "changed": [list(pair) for pair in extents.changed],
    }


def write_description(data: Path, subject: Subject, extents: Extents) -> None:
    """Write the description beside the file. Raises StagingFull, StagingFault."""
    text = json.dumps(description(data, subject, extents)) + "\n"
    try:
        write_file(data.with_suffix(DESCRIPTION_SUFFIX), text)
    except OSError as error:
        raise staging_error(error) from error
