"""`ObjectClient`: every S3 request that the rest of the program can make.

All requests are asynchronous and none of them blocks. `get` delivers to a `BodySink` as bytes
arrive; all others return a future. One call sends one HTTP request once: the caller sets
deadlines and retries (`s3.retry`, `read.stream`).

Keys are bytes: S3 guarantees UTF-8, but other stores do not.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol, TypeVar, dataclass_transform

from mountpoint.native._lane import LaneSource
from mountpoint.s3.capabilities import Capabilities
from mountpoint.system.spill import FileRange

T = TypeVar("T")

#: The checksums that an upload can carry, by their names in the header.
ChecksumName = Literal["crc32c", "crc64nvme"]

#: One piece of a request's body.
Piece = bytes | bytearray | memoryview | FileRange


#: The user metadata of the many objects that have none.
NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass_transform(frozen_default=True)
def _unchanging(cls: type[T]) -> type[T]:
    """Make a dataclass that mypy knows as frozen.

    Python does not enforce it: to make a frozen object takes four times as long, and a LIST makes a
    thousand.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


@_unchanging
class ObjectInfo:
    """One object version, as LIST, HEAD or GET describes it.

    `etag` is quoted, as If-Match requires; "" if the answer has none. `restored` matters only for
    archive storage classes. `metadata` is the user metadata, by lower-case names without the header
    prefix; None if the answer does not tell it, as in LIST. It is not part of the version and does
    not count for equality.
    """

    key: bytes
    size_bytes: int
    mtime_ns: int
    etag: str
    storage_class: str = "STANDARD"
    restored: bool = False
    metadata: Mapping[str, str] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of ListObjectsV2.

    `objects` and `prefixes` are in the server's order. `next_token` is None on the last page.
    `skipped` counts the entries that could not be parsed. `encoded` means that the server
    URL-encoded its keys. `by_marker` means that it answered with a page of ListObjects; its token
    is then a marker.
    """

    objects: list[ObjectInfo]
    prefixes: list[bytes]
    next_token: str | None = None
    skipped: int = 0
    encoded: bool = True
    by_marker: bool = False


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum in Base64, as S3 writes it; for an object of N parts it may be "VALUE-N"."""

    name: ChecksumName
    value: str


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request: `pieces` in order. Nothing may change them while it is sent.

    The request also carries `checksum`, and the server rejects a body that does not match it.
    """

    pieces: Sequence[Piece] = ()
    size_bytes: int = 0
    checksum: Checksum | None = None

    @property
    def memory_bytes(self) -> int:
        """The bytes of the body that are in memory, without those in temporary files."""
        return sum(len(each) for each in self.pieces if not isinstance(each, FileRange))


@dataclass(frozen=True, slots=True)
class PutOptions:
    """The properties of a new object other than its bytes. None means the bucket's default.

    `sse` is "AES256", "aws:kms" or "aws:kms:dsse". `metadata` is the user metadata; its names lack
    the header prefix. `checksum` is the algorithm for the whole object. `headers` are other headers
    that S3 stores and returns with the object, such as Cache-Control.
    """

    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    checksum: ChecksumName | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Condition:
    """What a write may replace: nothing with `absent`, only that version with `etag`."""

    absent: bool = False
    etag: str | None = None


ALWAYS = Condition()
NEW = Condition(absent=True)


@dataclass(frozen=True, slots=True)
class Written:
    """The server's answer to a write of an object or part.

    `checksum` is "" if the answer has none. `date_ns` is the time of the answer in nanoseconds
    since 1970, in whole seconds. It is close to the object's mtime; 0 if unknown.
    """

    etag: str
    checksum: str = ""
    date_ns: int = 0


@dataclass(frozen=True, slots=True)
class PartDone:
    """A part as CompleteMultipartUpload lists it. `checksum` is None if the server sent none."""

    number: int
    etag: str
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """An object and its stored checksums by name; composite ones end in "-N".

    `checksum_type` is "FULL_OBJECT", "COMPOSITE", or "" if the store does not say. `options` hold
    the content type, metadata and other headers, as an upload would set them. `tags` is the number
    of tags; 0 if the credentials may not read it.
    """

    info: ObjectInfo
    checksums: Mapping[str, str]
    options: PutOptions = field(default_factory=PutOptions)
    tags: int = 0
    checksum_type: str = ""


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """A multipart upload that is neither completed nor aborted."""

    key: bytes
    upload_id: str
    started_ns: int


@dataclass(frozen=True, slots=True)
class UploadPage:
    """One page of ListMultipartUploads; `next_marker` (key, upload id) is None on the last."""

    uploads: list[PendingUpload]
    next_marker: tuple[bytes, str] | None = None


class BodySink(Protocol):
    """The receiver of one GET. The client calls it from its own threads, in this order:

    `on_headers` at most once, `on_body` any number of times, `finish` exactly once.
    """

    def on_headers(self, info: ObjectInfo) -> None:
        """Receive the description of the whole object."""

    def on_body(self, chunk: bytes, offset: int) -> None:
        """Receive the next bytes; `offset` counts from the start of the object."""

    def finish(self, error: Exception | None) -> None:
        """Receive the end of the answer; `error` is None if the answer is complete."""


class Transfer(Protocol):
    """A GET in progress."""

    def cancel(self) -> None:
        """Cancel the GET. `finish` is still called, with an error, unless it was called before."""


class ByteSource(Protocol):
    """Where reads get the bytes of object versions. Sinks and futures receive `S3Error`s."""

    @property
    def verifies(self) -> bool:
        """Whether bodies are compared with the stored checksums."""

    def get(self, version: ObjectInfo, start: int, stop: int, sink: BodySink) -> Transfer:
        """Get the half-open byte range [start, stop) of a version; it must not be empty.

        Fails with PreconditionFailed for any other version (but see `Capabilities.matches`; with
        the ETag "" any version will do), and with ChecksumMismatch if the body does not match its
        checksum.
        """

    def lane_source(self, version: ObjectInfo) -> LaneSource | None:
        """Return a source of ranges of a version for reads in its lane; None if there is none.

        It sends the same requests as `get`. It is for the next few seconds: later its credentials
        may have expired.
        """

    def head_with_checksums(self, key: bytes) -> "Future[Stored]":
        """Send HeadObject with checksums. With KMS encryption it needs permission to decrypt."""


class ObjectClient(ByteSource, Protocol):
    """The S3 requests that the file system makes. Futures and sinks receive `S3Error`s.

    `lists_in_order`: LIST returns keys in byte order and honours start-after, so a page also shows
    which keys do not exist. `is_directory`: the bucket is a directory bucket (S3 Express One Zone);
    only these support append and rename. `capabilities`: the other features of the store, as far as
    they are known.
    """

    is_directory: bool
    capabilities: Capabilities

    @property
    def lists_in_order(self) -> bool:
        """See above."""

    def head(self, key: bytes) -> "Future[ObjectInfo]":
        """Send HeadObject. Raises NotFound if the key does not exist."""

    def list(
        self,
        prefix: bytes,
        *,
        token: str | None = None,
        start_after: bytes | None = None,
        max_keys: int = 1000,
        flat: bool = False,
    ) -> "Future[ListPage]":
        """Send ListObjectsV2 for one directory or, with `flat`, for all keys below `prefix`.

        Continues from `token`, or starts with the first key after `start_after`; never both.
        """

    def put_object(
        self, key: bytes, body: Body, options: PutOptions, condition: Condition = ALWAYS
    ) -> "Future[Written]":
        """Send PutObject. Raises PreconditionFailed if the condition is not met.

        This and the writes below raise NotFound if the version to replace is gone, and BadDigest
        if the server received or stored other bytes than were sent.
        """

    def append_object(
        self,
        key: bytes,
        body: Body,
        *,
        offset: int,
        options: PutOptions,
        condition: Condition = ALWAYS,
    ) -> "Future[Written]":
        """Send PutObject with bytes to append; `offset` is the object's current size in bytes.

        With offset 0 it creates a missing object. Raises WrongOffset if the object has another
        size, PreconditionFailed if the condition is not met, and TooLarge after 10,000 parts. On
        other buckets than directory buckets it sends nothing and raises NotOffered. Only the
        encryption in `options` is used.
        """

    def rename_object(
        self, source: bytes, key: bytes, *, source_etag: str, condition: Condition, token: str
    ) -> "Future[None]":
        """Send RenameObject, which atomically renames this version of the source only.

        All tries of one rename share `token` (at most 64 visible ASCII characters), so S3 does not
        repeat a rename that succeeded. Raises AlreadyExists if the key had to be absent,
        PreconditionFailed if source or key is another version, and NotFound if the source is gone.
        On other buckets than directory buckets it sends nothing and raises NotOffered: other
        servers treat the request as a PUT of an empty object.
        """

    def create_upload(self, key: bytes, options: PutOptions) -> "Future[str]":
        """Send CreateMultipartUpload; the result is the upload id."""

    def upload_part(self, key: bytes, upload_id: str, number: int, body: Body) -> "Future[Written]":
        """Send UploadPart; `number` is 1 to 10,000. Raises NoSuchUpload if it is not pending."""

    def complete_upload(
        self,
        key: bytes,
        upload_id: str,
        parts: Sequence[PartDone],
        *,
        size_bytes: int,
        checksum: Checksum | None,
        condition: Condition = ALWAYS,
    ) -> "Future[Written]":
        """Send CompleteMultipartUpload, which joins the parts in order.

        `size_bytes` and `checksum` describe the whole object. S3 rejects any other object, and the
        checksum in its answer is compared again (BadDigest).
        """

    def abort_upload(self, key: bytes, upload_id: str) -> "Future[None]":
        """Send AbortMultipartUpload. Raises NoSuchUpload if it is not pending."""

    def list_uploads(
        self, prefix: bytes, *, after: tuple[bytes, str] | None = None
    ) -> "Future[UploadPage]":
        """Send ListMultipartUploads for the keys below `prefix`, starting after a marker."""

    def delete_object(self, key: bytes, *, etag: str | None = None) -> "Future[None]":
        """Send DeleteObject. A missing key is not an error.

        With `etag` it deletes only that version. Otherwise it raises PreconditionFailed, or
        NotFound if there is no object. Some stores ignore the condition without an error.
        """

    def copy_object(
        self,
        source: bytes,
        key: bytes,
        *,
        source_etag: str,
        options: PutOptions | None = None,
        keep_metadata: bool = False,
        condition: Condition = ALWAYS,
    ) -> "Future[Written]":
        """Send CopyObject: at most 5 GiB, within the bucket, this version of the source only.

        Without `options` the copy keeps everything except what the bucket sets. With `options`,
        their content type and metadata replace the source's, unless `keep_metadata`.
        """

    def copy_part(
        self,
        source: bytes,
        key: bytes,
        upload_id: str,
        number: int,
        start: int,
        stop: int,
        *,
        source_etag: str,
        checksum: ChecksumName | None = None,
    ) -> "Future[Written]":
        """Send UploadPartCopy for the half-open byte range [start, stop) of this source version.

        `checksum` is the algorithm that the upload was created with; S3 returns it for the part.
        """

    def interrupt(self) -> None:
        """Fail all current and future requests with Interrupted."""

    def close(self) -> None:
        """Interrupt. Connections and threads end when nothing refers to the client any more."""


def same_etag(etag: str, other: str) -> bool:
    """Whether two ETags are equal. Some stores leave out the quotes in some answers."""
    return etag.strip('"') == other.strip('"')
