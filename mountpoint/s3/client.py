"""`ObjectClient`: all that the rest of the program knows of S3.

Every request is asynchronous; nothing here waits. `head` and `list` answer with a future,
`get` delivers into a `BodySink` as bytes arrive. One call is one HTTP request and one try:
who waits also decides about deadlines and retries (`s3.retry`, `reading.stream`).

Keys are bytes, because S3 promises UTF-8 and other stores do not keep the promise.
"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object version, as LIST, HEAD or GET describe it.

    `etag` is kept as it came, quotes included: If-Match wants it so. `restored` matters for
    archive storage classes only.
    """

    key: bytes
    size_bytes: int
    mtime_ns: int
    etag: str
    storage_class: str = "STANDARD"
    restored: bool = False


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of ListObjectsV2.

    `objects` and `prefixes` are in the server's order. `next_token` is None on the last
    page. `skipped` counts entries that made no sense and were left out.
    """

    objects: list[ObjectInfo]
    prefixes: list[bytes]
    next_token: str | None = None
    skipped: int = 0


class BodySink(Protocol):
    """Where one GET delivers. Called from client threads, in this order:

    `on_headers` at most once, `on_body` any number of times, `finish` exactly once.
    """

    def on_headers(self, info: ObjectInfo) -> None:
        """Take the description of the whole object that the answer belongs to."""

    def on_body(self, chunk: bytes, offset: int) -> None:
        """Take the next bytes; `offset` counts from the start of the object."""

    def finish(self, error: Exception | None) -> None:
        """Take the end: None when the whole answer has come."""


class Transfer(Protocol):
    """A GET under way."""

    def cancel(self) -> None:
        """Stop it. The sink's `finish` still comes, with an error, unless it has come."""


class ObjectClient(Protocol):
    """The requests that the file system makes. Errors are `S3Error`s, in future or sink.

    `lists_in_order` says whether keys are listed in the order of their bytes, so that a page
    also tells which keys do not exist.
    """

    lists_in_order: bool

    def head(self, key: bytes) -> "Future[ObjectInfo]":
        """HeadObject. NotFound when there is no such key."""

    def list(
        self,
        prefix: bytes,
        *,
        token: str | None = None,
        start_after: bytes | None = None,
        max_keys: int = 1000,
        flat: bool = False,
    ) -> "Future[ListPage]":
        """ListObjectsV2: one directory, or `flat`, all keys that begin with `prefix`.

        It goes on from a `token`, or begins with the first key after `start_after`; never both.
        """

    def get(
        self,
        key: bytes,
        start: int,
        stop: int,
        sink: BodySink,
        *,
        if_match: str | None,
        whole: bool = False,
    ) -> Transfer:
        """GetObject of the half-open byte range [start, stop), which must not be empty.

        With `if_match` (an ETag) any other version of the object is PreconditionFailed.
        `whole` says that the range is all of that version: then more stores send a checksum.
        A body that does not match its checksum is ChecksumMismatch.
        """

    def interrupt(self) -> None:
        """Fail everything under way, and everything that is asked later, with Interrupted."""

    def close(self) -> None:
        """Interrupt. Connections and threads go when nothing refers to the client any more."""
