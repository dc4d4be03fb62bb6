"""Which checksum in an answer covers the body, and whether the body matches it. Pure.

S3 sends a checksum where it has one, if asked (`x-amz-checksum-mode`), as `x-amz-checksum-NAME`
with `x-amz-checksum-type`. It can be compared with a body in these cases only:

* the whole object and FULL_OBJECT, or no type and an ETag that is not a multipart upload's:
  stores from before 2025 send no type, and none of them has the whole of such an object's;
* a range and COMPOSITE: that range is one part of the upload, and this is the part's own
  (https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html,
  "byte range that aligns with a single part");
* the whole object and COMPOSITE of one part ("VALUE-1"): the checksum of the part's checksum.

Everything else is no statement about the body, and not corruption. awscrt 0.38 can compare by
itself (`S3ChecksumConfig(validate_response=True)`), but takes any value without a "-" for the
body's: also the whole object's that a careless server sends with a range, and the composite one
that S3 sends without its "-N" with a range that is the whole object
(https://github.com/boto/botocore/issues/3346). Good data would then be EIO for good.
"""

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from awscrt import checksums

from mountpoint.s3.client import ChecksumName, ObjectInfo, Stored
from mountpoint.s3.wire.errors import Headers


class Hash(Protocol):
    """What hashlib's objects do."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""

    def digest(self) -> bytes:
        """Return the checksum of all bytes so far."""


class _Crc:
    def __init__(self, function: Callable[[bytes | memoryview, int], int], size_bytes: int) -> None:
        self._function = function
        self._size_bytes = size_bytes
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size_bytes, "big")


class _XxHash:
    def __init__(self, state: checksums.XXHash) -> None:
        self._state = state

    def update(self, data: bytes | memoryview, /) -> None:
        self._state.update(data)

    def digest(self) -> bytes:
        return bytes(self._state.finalize())


class Algorithm(NamedTuple):
    """A checksum's length, and how to compute it."""

    size_bytes: int
    new: Callable[[], Hash]


#: By the name in the header, cheapest first: an answer may have several. CPU seconds per GB on
#: a server of 2023: the CRCs 0.03, 0.05 and 0.16 (zlib's; awscrt's 0.32), SHA 0.5 to 1, MD5 1.3.
ALGORITHMS: dict[str, Algorithm] = {
    "crc64nvme": Algorithm(8, lambda: _Crc(checksums.crc64nvme, 8)),
    "crc32c": Algorithm(4, lambda: _Crc(checksums.crc32c, 4)),
    "xxhash3": Algorithm(8, lambda: _XxHash(checksums.XXHash.new_xxhash3_64())),
    "xxhash128": Algorithm(16, lambda: _XxHash(checksums.XXHash.new_xxhash3_128())),
    "xxhash64": Algorithm(8, lambda: _XxHash(checksums.XXHash.new_xxhash64())),
    "crc32": Algorithm(4, lambda: _Crc(zlib.crc32, 4)),
    "sha1": Algorithm(20, lambda: hashlib.sha1(usedforsecurity=False)),
    "sha256": Algorithm(32, hashlib.sha256),
    "sha512": Algorithm(64, hashlib.sha512),
    "md5": Algorithm(16, lambda: hashlib.md5(usedforsecurity=False)),
}


class Crc(NamedTuple):
    """A checksum of which those of two ranges, side by side, make that of both together.

    `of(data, 0)` computes one, without the GIL; `combine(first, second, size_of_second)` joins two.
    """

    of: Callable[[bytes | memoryview, int], int]
    combine: Callable[[int, int, int], int]


#: By the name in the header, cheapest first.
CRCS: dict[str, Crc] = {
    "crc64nvme": Crc(checksums.crc64nvme, checksums.combine_crc64nvme),
    "crc32c": Crc(checksums.crc32c, checksums.combine_crc32c),
    "crc32": Crc(zlib.crc32, checksums.combine_crc32),
}

_PREFIX = "x-amz-checksum-"
#: S3 numbers the parts of an upload from 1 to 10,000.
_MULTIPART_ETAG = re.compile(r'"?[0-9a-fA-F]+-\d{1,5}"?', re.ASCII)


class Expected(NamedTuple):
    """What the body's checksum has to be; with `of_part` the checksum of its checksum."""

    name: str
    digest: bytes
    of_part: bool = False


def expected(headers: Headers, info: ObjectInfo, start: int, stop: int) -> Expected | None:
    """Return what an answer with the bytes [start, stop) of `info` promises of its body.

    None where it promises nothing that could be compared, or in a form that makes no sense.
    """
    values = {name.lower().removeprefix(_PREFIX): value.strip() for name, value in headers}
    whole = (start, stop) == (0, info.size_bytes)
    return _promised(values, values.get("type", ""), info, ALGORITHMS, whole=whole)


def expected_of_whole(stored: Stored) -> Expected | None:
    """Return the CRC that the whole object has; None where S3 has none, or only of its parts."""
    return _promised(stored.checksums, stored.checksum_type, stored.info, CRCS, whole=True)


def _promised(
    values: Mapping[str, str], kind: str, info: ObjectInfo, names: Iterable[str], *, whole: bool
) -> Expected | None:
    kind = kind.upper()
    if not kind and not _MULTIPART_ETAG.fullmatch(info.etag):
        kind = "FULL_OBJECT"
    for name in names:
        value = values.get(name)
        if value is None:
            continue
        text, dash, parts = value.partition("-")
        digest = decoded(name, text)
        if digest is None:
            continue
        if dash and whole and parts == "1":
            return Expected(name, digest, of_part=True)
        if not dash and kind == ("FULL_OBJECT" if whole else "COMPOSITE"):
            return Expected(name, digest)
    return None


def decoded(name: str, text: str) -> bytes | None:
    """Return a checksum that stands in a header; None if it is none of this name."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return digest if len(digest) == ALGORITHMS[name].size_bytes else None


def of_parts(name: ChecksumName, parts: Sequence[tuple[bytes, int]]) -> str:
    """Return the checksum, as S3 writes it, of an object of parts: (their own, their size).

    COMPOSITE for CRC32C: the checksum of the parts' checksums, "-" and how many they are.
    FULL_OBJECT for CRC64NVME: that of all the bytes, put together from the parts'.
    """
    if name == "crc64nvme":
        value = 0
        for digest, size_bytes in parts:
            part = int.from_bytes(digest, "big")
            value = checksums.combine_crc64nvme(value, part, size_bytes)
        return encoded(value.to_bytes(8, "big"))
    outer = ALGORITHMS[name].new()
    outer.update(b"".join(digest for digest, _ in parts))
    return f"{encoded(outer.digest())}-{len(parts)}"


def encoded(digest: bytes) -> str:
    """Return a checksum as it stands in headers."""
    return base64.b64encode(digest).decode("ascii")


class Verification:
    """The comparison of one body, as it comes, with what is expected of it."""

    def __init__(self, expected: Expected) -> None:
        self.name = expected.name
        self._expected = expected
        self._hash = ALGORITHMS[expected.name].new()

    def update(self, chunk: bytes) -> None:
        """Take the next bytes. Releases the GIL while it computes."""
        self._hash.update(chunk)

    def matches(self) -> bool:
        """Whether all that came is what was promised."""
        return _is(self._expected, self._hash.digest())


def crc_matches(expected: Expected, value: int) -> bool:
    """Whether a whole object's CRC is what was promised."""
    return _is(expected, value.to_bytes(ALGORITHMS[expected.name].size_bytes, "big"))


def _is(expected: Expected, digest: bytes) -> bool:
    if expected.of_part:
        outer = ALGORITHMS[expected.name].new()
        outer.update(digest)
        digest = outer.digest()
    return digest == expected.digest
