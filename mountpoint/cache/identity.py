"""What names the blocks of an object version: endpoint, bucket, ETag, size and key.

Another version of an object has another identity. So versions are never mixed, and nothing has to
be removed when an object changes. A block's file is named after a digest of the identity, and has
the identity itself in its trailer (`blocks`): two versions with the same digest are told apart.

No part of a key stands in a path.
"""

import functools
import hashlib
import re
from dataclasses import dataclass

from mountpoint.cache.blocks._format import MAX_IDENTITY_BYTES
from mountpoint.s3.client import ObjectInfo

#: The longest part of a directory's name that comes from the bucket's name.
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """An object version. `endpoint` is the store's host, with a port or path if it has one."""

    endpoint: str
    bucket: str
    etag: str
    size_bytes: int
    key: bytes

    @classmethod
    def of(cls, endpoint: str, bucket: str, info: ObjectInfo) -> "Identity | None":
        """Return a version's identity; None if nothing tells it from others, it is empty, or a
        trailer has no room for it.
        """
        if Names(endpoint, bucket).of(info) is None:
            return None
        return cls(endpoint, bucket, info.etag, info.size_bytes, info.key)

    @classmethod
    def parse(cls, text: bytes) -> "Identity":
        """Return the identity with this text. Raises ValueError if there is none."""
        if len(text) > MAX_IDENTITY_BYTES:
            raise ValueError(f"an identity of {len(text)} bytes")
        endpoint, bucket, etag, size, key = text.split(b"\0", 4)
        return cls(endpoint.decode(), bucket.decode(), etag.decode(), int(size), key)

    @property
    def text(self) -> bytes:
        """The identity as trailers have it."""
        head = f"{self.endpoint}\0{self.bucket}\0{self.etag}\0{self.size_bytes}\0"
        return head.encode() + self.key

    @property
    def path(self) -> str:
        """The path of the version's blocks in the cache directory, without the index."""
        return _path(bucket_directory(self.endpoint, self.bucket), self.text)


class Names:
    """The identities of one bucket's object versions, as blocks have them."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        # constants
        self._head = f"{endpoint}\0{bucket}\0"
        self._folder = bucket_directory(endpoint, bucket)
        self._usable = self._head.count("\0") == 2

    def of(self, info: ObjectInfo) -> tuple[bytes, bytes] | None:
        """Return `Identity.path` and `Identity.text` of a version; None as `Identity.of`.

        Faster than these: each open of a file needs it.
        """
        etag = info.etag
        if not (self._usable and etag and info.size_bytes > 0) or "\0" in etag:
            return None
        try:
            text = f"{self._head}{etag}\0{info.size_bytes}\0".encode() + info.key
        except UnicodeEncodeError:  # a store may answer with any bytes as the ETag
            return None
        if len(text) > MAX_IDENTITY_BYTES:
            return None
        return _path(self._folder, text).encode(), text


def _path(folder: str, text: bytes) -> str:
    digest = _digest(text, 16)
    return f"{folder}/{digest[:2]}/{digest[2:]}"


@functools.lru_cache
def bucket_directory(endpoint: str, bucket: str) -> str:
    """Return the name of the directory of a bucket's blocks."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", bucket)[:MAX_NAME].lstrip(".")
    return f"{name}-{_digest(f'{endpoint}{chr(0)}{bucket}'.encode(), 4)}"


def _digest(data: bytes, size_bytes: int) -> str:
    return hashlib.blake2b(data, digest_size=size_bytes).hexdigest()
