"""Pure: a file's POSIX attributes (mode, uid, gid, mtime) in the user metadata of its object.

The names and formats are those of s3fs-fuse; rclone reads and writes some of them:

| name | value |
|---|---|
| `mode` | `st_mode` with the file's type, decimal: `33188`; rclone writes it octal: `100644` |
| `uid`, `gid` | decimal |
| `mtime` | seconds since 1970, decimal, with a fraction if there is one: `1700000000.000000001` |

s3fs reads the digits after the point as a number of nanoseconds, so all nine are written. An
`atime` is kept. A `ctime` is removed when an attribute changes; s3fs then shows the object's own
time, as this mount does.

Neither the server nor the uploader is trusted: a malformed value counts as missing. A mode without
a file type, or with that of something other than a file, follows some other convention.
https://github.com/s3fs-fuse/s3fs-fuse/blob/master/src/metaheader.cpp
"""

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass

#: (uid_t) -1 means "unchanged" to chown(2).
ID_MAX = (1 << 32) - 2
#: The last whole second whose nanoseconds fit in 63 bits (the year 2262).
_MTIME_MAX_S = ((1 << 63) - 1) // 1_000_000_000
#: st_mode has 16 bits.
_MODE_MAX = 0xFFFF

_NUMBER = re.compile(r"[0-9]{1,12}", re.ASCII)
_SECONDS = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,32}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileAttributes:
    """The stored attributes; None means not stored. `mode` lacks the file type."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None

    def updated(self, other: "FileAttributes") -> "FileAttributes":
        """Return a copy in which the values that `other` has replace these."""
        return FileAttributes(
            self.mode if other.mode is None else other.mode,
            self.uid if other.uid is None else other.uid,
            self.gid if other.gid is None else other.gid,
            self.mtime_ns if other.mtime_ns is None else other.mtime_ns,
        )


NOTHING = FileAttributes()

#: The names that are written here, and `ctime`, which a write makes wrong.
_NAMES = frozenset({"mode", "uid", "gid", "mtime", "ctime"})


def parsed(metadata: Mapping[str, str] | None) -> FileAttributes:
    """Return the file attributes in an object's metadata, whose names are in lower case."""
    if not metadata or _NAMES.isdisjoint(metadata):
        return NOTHING
    return FileAttributes(
        _mode(metadata.get("mode", "")),
        _id(metadata.get("uid", "")),
        _id(metadata.get("gid", "")),
        _mtime_ns(metadata.get("mtime", "")),
    )


def formatted(attributes: FileAttributes) -> dict[str, str]:
    """Return the metadata for these attributes. Times before 1970 become 1970."""
    metadata = {}
    if attributes.mode is not None:
        metadata["mode"] = str(stat.S_IFREG | stat.S_IMODE(attributes.mode))
    if attributes.uid is not None:
        metadata["uid"] = str(attributes.uid)
    if attributes.gid is not None:
        metadata["gid"] = str(attributes.gid)
    if attributes.mtime_ns is not None:
        seconds, rest_ns = divmod(max(attributes.mtime_ns, 0), 1_000_000_000)
        metadata["mtime"] = f"{seconds}.{rest_ns:09}" if rest_ns else str(seconds)
    return metadata


def replaced(metadata: Mapping[str, str], attributes: FileAttributes) -> dict[str, str]:
    """Return `metadata` with exactly these attributes; all other entries stay."""
    others = {name: text for name, text in metadata.items() if name.lower() not in _NAMES}
    return others | formatted(attributes)


def added(metadata: Mapping[str, str], attributes: FileAttributes) -> Mapping[str, str]:
    """Return `metadata` with these attributes, too; the same if it has them already."""
    before = parsed(metadata)
    after = before.updated(attributes)
    return metadata if after == before else replaced(metadata, after)


def _mode(text: str) -> int | None:
    """Return the permission bits of a mode: decimal if that gives a file's mode, else octal."""
    if not _NUMBER.fullmatch(text):
        return None
    modes = [int(text)]
    if not set(text) & {"8", "9"}:
        modes.append(int(text, 8))
    for mode in modes:
        if mode <= _MODE_MAX and stat.S_ISREG(mode):
            return stat.S_IMODE(mode)
    return None


def _id(text: str) -> int | None:
    number = int(text) if _NUMBER.fullmatch(text) else ID_MAX + 1
    return number if number <= ID_MAX else None


def _mtime_ns(text: str) -> int | None:
    match = _SECONDS.fullmatch(text)
    if match is None or int(match[1]) >= _MTIME_MAX_S:
        return None
    return int(match[1]) * 1_000_000_000 + int((match[2] or "")[:9].ljust(9, "0"))
