"""Checksums of bodies: find the one in an answer that covers the body, and compare. Pure.

If asked (`x-amz-checksum-mode`), S3 sends a stored checksum as `x-amz-checksum-NAME` with
`x-amz-checksum-type`. It can be compared with the body only in these cases:

* The whole object and FULL_OBJECT; or no type and an ETag that is not from a multipart upload.
  Stores from before 2025 send no type, and none of them has a checksum of a whole multipart object.
* A range and COMPOSITE: the range is one part of the upload, and the checksum is that part's
  (https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html,
  "byte range that aligns with a single part").
* The whole object and COMPOSITE of one part ("VALUE-1"): the checksum of the part's checksum.

Any other checksum says nothing about the body; a mismatch is not corruption. awscrt 0.38 can
compare (`S3ChecksumConfig(validate_response=True)`), but it applies any value without a "-" to the
body. That includes the whole object's checksum, which careless servers send with a range, and the
composite one, which S3 sends without "-N" if the range is the whole object
(https://github.com/boto/botocore/issues/3346). Reads of intact data would always fail with EIO.
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
    """The methods of hashlib's objects that are used here."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add the next bytes."""

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
    """A checksum's length in bytes and its constructor."""

    size_bytes: int
    new: Callable[[], Hash]


def crc64nvme(data: bytes | memoryview, before: int = 0) -> int:
    """Return the CRC64NVME of bytes that follow others, whose CRC64NVME is `before`."""
    checksum: int = checksums.crc64nvme(data, before)
    return checksum


#: By the name in the header, cheapest first, because an answer may have several. CPU seconds per GB
#: on a 2023 server: CRCs 0.03, 0.05 and 0.16 (zlib's; awscrt's 0.32), SHA 0.5 to 1, MD5 1.3.
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
    """A checksum that can be combined: those of two adjacent ranges give that of both.

    `of(data, 0)` computes a checksum without the GIL; `combine(first, second, size_of_second)`
    joins two.
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
#: The number of parts follows the "-": S3 allows 1 to 10,000.
_MULTIPART_ETAG = re.compile(r'"?[0-9a-fA-F]+-\d{1,5}"?', re.ASCII)


class Expected(NamedTuple):
    """The checksum that the body must have; with `of_part`, the checksum of its checksum."""

    name: str
    digest: bytes
    of_part: bool = False


def expected(headers: Headers, info: ObjectInfo, start: int, stop: int) -> Expected | None:
    """Return the checksum of the body that an answer with bytes [start, stop) of `info` promises.

    None if the answer has no checksum that covers the body, or only a malformed one.
    """
    values = {name.lower().removeprefix(_PREFIX): value.strip() for name, value in headers}
    whole = (start, stop) == (0, info.size_bytes)
    return _promised(values, values.get("type", ""), info, ALGORITHMS, whole=whole)


def expected_of_whole(stored: Stored) -> Expected | None:
    """Return the CRC of the whole object; None if S3 has none, or only those of its parts."""
    return _promised(stored.checksums, stored.checksum_type, stored.info, CRCS, whole=True)


def is_multipart(etag: str) -> bool:
    """Whether this is the ETag of an object that was uploaded in parts."""
    return "-" in etag and _MULTIPART_ETAG.fullmatch(etag) is not None


def _promised(
    values: Mapping[str, str], kind: str, info: ObjectInfo, names: Iterable[str], *, whole: bool
) -> Expected | None:
    kind = kind.upper()
    if not kind and not is_multipart(info.etag):
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
    """Return the checksum in a header value; None if it is malformed for this algorithm."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return digest if len(digest) == ALGORITHMS[name].size_bytes else None


def of_parts(name: ChecksumName, parts: Sequence[tuple[bytes, int]]) -> str:
    """Return the checksum of an object, as S3 writes it, from its parts' (digest, size in bytes).

    CRC32C is COMPOSITE: the checksum of the parts' checksums, "-" and the number of parts.
    CRC64NVME is FULL_OBJECT: the checksum of all bytes, combined from the parts'.
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
    """Return a checksum as it appears in headers."""
    return base64.b64encode(digest).decode("ascii")


class Verification:
    """Compares one body, as it arrives, with its expected checksum."""

    def __init__(self, expected: Expected) -> None:
        self.name = expected.name
        self._expected = expected
        self._hash = ALGORITHMS[expected.name].new()

    def update(self, chunk: bytes | memoryview) -> None:
        """Add the next bytes. Releases the GIL while it computes."""
        self._hash.update(chunk)

    def matches(self) -> bool:
        """Whether the bytes so far have the expected checksum."""
        return _is(self._expected, self._hash.digest())


def crc_matches(expected: Expected, value: int) -> bool:
    """Whether `value`, the CRC of a whole object, is the expected one."""
    return _is(expected, value.to_bytes(ALGORITHMS[expected.name].size_bytes, "big"))


def _is(expected: Expected, digest: bytes) -> bool:
    if expected.of_part:
        outer = ALGORITHMS[expected.name].new()
        outer.update(digest)
        digest = outer.digest()
    return digest == expected.digest
