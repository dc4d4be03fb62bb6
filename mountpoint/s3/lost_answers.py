"""Find out whether a write has succeeded although its answer was lost.

A write that is sent again may be refused because of its earlier try: If-None-Match fails on the
object that we have just made, and a completed upload no longer exists. So when such a write is
refused, or runs out of tries, HEAD decides: the object is ours if it equals the one that we sent.
An equal object of another client counts as well.

Pure, and compared by checksum or, where there is none, by ETag. An ETag of a store that does not
compute it as S3 does never matches: then the error is reported although the write has succeeded.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

from mountpoint.errors import NoSuchUpload, S3Error
from mountpoint.s3.client import Body, Checksum, Condition, ObjectInfo, PartDone, Stored, same_etag
from mountpoint.system.spill import FileRange


def may_have_succeeded(error: S3Error, *, retried: bool) -> bool:
    """Whether a write that ends with `error` may have succeeded, in this try or an earlier one."""
    return retried or error.retryable or isinstance(error, NoSuchUpload)


def is_sent(
    stored: Stored, size_bytes: int, expected: Checksum | None, etag: Callable[[], str]
) -> bool:
    """Whether the stored object equals the sent one; by its `etag` where it has no checksum."""
    if stored.info.size_bytes != size_bytes:
        return False
    checksum = stored.checksums.get(expected.name) if expected is not None else None
    if expected is not None and checksum:
        return checksum.partition("-")[0] == expected.value.partition("-")[0]
    return same_etag(stored.info.etag, etag())


def is_appended(stored: Stored, body: Body, before: ObjectInfo) -> bool:
    """Whether the stored object is the one `before`, with `body` added."""
    after_bytes = before.size_bytes + body.size_bytes
    return stored.info.size_bytes == after_bytes and stored.info.etag != before.etag


def is_first_part(stored: Stored, body: Body, condition: Condition) -> bool:
    """Whether the stored object is `body`, and not the version that it had to replace."""
    sent = body.checksum
    if sent is not None and stored.checksums.get(sent.name) != sent.value:
        return False
    untouched = stored.info.etag == condition.etag
    return stored.info.size_bytes == body.size_bytes and not untouched


def is_copy(stored: Stored, source: Stored) -> bool:
    """Whether the stored object equals the source. A copy of parts may have another ETag."""
    if stored.info.size_bytes != source.info.size_bytes:
        return False
    return same_etag(stored.info.etag, source.info.etag) or any(
        stored.checksums.get(name) == value for name, value in source.checksums.items()
    )


def is_changed(stored: Stored, metadata: Mapping[str, str], size_bytes: int) -> bool:
    """Whether the stored object is one of that size with this user metadata."""
    return stored.options.metadata == metadata and stored.info.size_bytes == size_bytes


def etag_of_body(body: Body) -> str:
    """Return the ETag of an object of this body."""
    hashed = hashlib.md5(usedforsecurity=False)
    for piece in body.pieces:
        hashed.update(bytes(piece) if isinstance(piece, FileRange) else piece)
    return hashed.hexdigest()


def etag_of_parts(parts: Sequence[PartDone]) -> str:
    """Return the ETag of an object of these parts; "" if the store has ETags of its own."""
    try:
        own = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
    except ValueError:
        return ""
    return f"{hashlib.md5(own, usedforsecurity=False).hexdigest()}-{len(parts)}"
