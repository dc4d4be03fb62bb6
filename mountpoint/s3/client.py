"""`ObjectClient`: all that the rest of the program knows of S3.

Every request is asynchronous; nothing here waits. `get` delivers into a `BodySink` as bytes
arrive, all others answer with a future. One call is one HTTP request and one try:
who waits also decides about deadlines and retries (`s3.retry`, `reading.stream`).

Keys are bytes, because S3 promises UTF-8 and other stores do not keep the promise.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mountpoint.s3.wire.posix_metadata import FileAttributes
from mountpoint.system.spill import FileRange

#: The checksums that uploads can carry, by the name in their header.
ChecksumName = Literal["crc32c", "crc64nvme"]

#: What the body of a request is made of.
Piece = bytes | bytearray | memoryview | FileRange


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object version, as LIST, HEAD or GET describe it.

    `etag` is in the form that If-Match wants, in quotes; "" where it is not told. `restored`
    matters for archive storage classes only. `attributes` are those of the file that its metadata
    keep; None where nobody has said: LIST does not. They are no part of the version, nor of
    equality.
    """

    key: bytes
    size_bytes: int
    mtime_ns: int
    etag: str
    storage_class: str = "STANDARD"
    restored: bool = False
    attributes: FileAttributes | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of ListObjectsV2.

    `objects` and `prefixes` are in the server's order. `next_token` is None on the last
    page. `skipped` counts entries that made no sense and were left out. `encoded` says whether the
    server has URL-encoded its keys, `by_marker` that it has answered with a page of ListObjects:
    then the token is a marker.
    """

    objects: list[ObjectInfo]
    prefixes: list[bytes]
    next_token: str | None = None
    skipped: int = 0
    encoded: bool = True
    by_marker: bool = False


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum as S3 writes it: Base64; of an object of N parts it may be "VALUE-N"."""

    name: ChecksumName
    value: str


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes that a request sends: `pieces`, one after another, that nobody changes.

    `checksum` goes with them, and the server refuses what does not match it.
    """

    pieces: Sequence[Piece] = ()
    size_bytes: int = 0
    checksum: Checksum | None = None

    @property
    def memory_bytes(self) -> int:
        """How much of it is in memory: what is in temporary files is not."""
        return sum(len(each) for each in self.pieces if not isinstance(each, FileRange))


@dataclass(frozen=True, slots=True)
class PutOptions:
    """What a new object is to be, beside its bytes. None leaves it to the bucket.

    `sse` is "AES256", "aws:kms" or "aws:kms:dsse"; `metadata` is the user's own, without the
    prefix of its headers; `checksum` is which one the whole object gets; `headers` are others that
    S3 keeps for who gets the object, such as Cache-Control.
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
    """When a write may replace what is there: never with `absent`, or only the version `etag`."""

    absent: bool = False
    etag: str | None = None


ALWAYS = Condition()
NEW = Condition(absent=True)


@dataclass(frozen=True, slots=True)
class Written:
    """What S3 says of an object or part that it has taken.

    `checksum` is "" where it says none. `date_ns` is when it answered, in whole seconds, which
    is about the object's mtime; 0 if unknown.
    """

    etag: str
    checksum: str = ""
    date_ns: int = 0


@dataclass(frozen=True, slots=True)
class PartDone:
    """A part as CompleteMultipartUpload lists it. `checksum` None: the server told none."""

    number: int
    etag: str
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """An object with the checksums that S3 has of it, by name; composite ones end in "-N".

    `checksum_type` is "FULL_OBJECT", "COMPOSITE", or "" where the store does not say.
    `options` describe it as who has put it could have: content type, metadata, other headers.
    `tags` is how many it has, as far as we may know.
    """

    info: ObjectInfo
    checksums: Mapping[str, str]
    options: PutOptions = field(default_factory=PutOptions)
    tags: int = 0
    checksum_type: str = ""


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """A multipart upload that has been neither completed nor aborted."""

    key: bytes
    upload_id: str
    started_ns: int


@dataclass(frozen=True, slots=True)
class UploadPage:
    """One page of ListMultipartUploads; `next_marker` (key, upload id) is None on the last."""

    uploads: list[PendingUpload]
    next_marker: tuple[bytes, str] | None = None


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


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an endpoint can do of what S3 can, and reading relies on (`s3.abilities`).

    `pages_by_token`: it knows ListObjectsV2. `starts_after`: it lists from where it is told.
    `matches`: If-Match of a GET holds for an object's own ETag, and for no other.
    `takes_checksum_mode`: it does not refuse that header.
    """

    pages_by_token: bool = True
    starts_after: bool = True
    matches: bool = True
    takes_checksum_mode: bool = True


S3_CAPABILITIES = Capabilities()


class Transfer(Protocol):
    """A GET under way."""

    def cancel(self) -> None:
        """Stop it. The sink's `finish` still comes, with an error, unless it has come."""


class ObjectClient(Protocol):
    """The requests that the file system makes. Errors are `S3Error`s, in future or sink.

    `lists_in_order` says whether keys are listed in the order of their bytes and from where it is
    asked, so that a page also tells which keys do not exist. `is_directory` says whether it is a
    directory bucket (S3 Express One Zone): only there objects are appended to and renamed. `is_aws`
    says whether it is AWS's own S3, of which nothing has to be found out. `wants_equal_parts` says
    whether all parts of an upload but the last have to have one size; None where nobody knows.
    `verifies` says whether what is read is compared with the checksums that the store has of it.
    """

    verifies: bool
    lists_in_order: bool
    is_directory: bool
    is_aws: bool
    wants_equal_parts: bool | None

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

    def describe(self, key: bytes) -> "Future[Stored]":
        """HeadObject with checksums, which needs the right to decrypt where KMS encrypts."""

    def put_object(
        self, key: bytes, body: Body, options: PutOptions, condition: Condition = ALWAYS
    ) -> "Future[Written]":
        """PutObject. PreconditionFailed when the condition is not met.

        Here and below: NotFound when the version to replace is gone, BadDigest when what
        arrived, or what the server says it has stored, is not what was sent.
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
        """PutObject of what follows the first `offset` bytes of an object, which are all of it.

        Of an object that is not there, with the offset 0, it makes one. WrongOffset when the object
        has another size, PreconditionFailed when the condition is not met, TooLarge after 10,000
        parts. NotOffered, with nothing sent, where it is no directory bucket. Of `options` only the
        encryption counts.
        """

    def rename_object(
        self, source: bytes, key: bytes, *, source_etag: str, condition: Condition, token: str
    ) -> "Future[None]":
        """RenameObject, at once and whole, of this version of the source only.

        The `token` (at most 64 visible ASCII characters) is one for all tries of one rename: what
        has been done is not done again. AlreadyExists when the key was to be absent,
        PreconditionFailed when source or key is another version, NotFound when the source is gone.
        NotOffered, with nothing sent, where it is no directory bucket: other servers take it
        for a PUT of nothing.
        """

    def create_upload(self, key: bytes, options: PutOptions) -> "Future[str]":
        """CreateMultipartUpload: the upload's id."""

    def upload_part(self, key: bytes, upload_id: str, number: int, body: Body) -> "Future[Written]":
        """UploadPart; numbers are 1 to 10,000. NoSuchUpload when it is no longer pending."""

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
        """CompleteMultipartUpload: the parts, in order, become the object.

        `size_bytes` and `checksum` are what the whole must have: S3 refuses what has not, and
        what it then says it has is compared once more (BadDigest).
        """

    def abort_upload(self, key: bytes, upload_id: str) -> "Future[None]":
        """AbortMultipartUpload. NoSuchUpload when it is no longer pending."""

    def list_uploads(
        self, prefix: bytes, *, after: tuple[bytes, str] | None = None
    ) -> "Future[UploadPage]":
        """ListMultipartUploads of the keys that begin with `prefix`, from a marker on."""

    def delete_object(self, key: bytes, *, etag: str | None = None) -> "Future[None]":
        """DeleteObject. That there is no such key is no error.

        With `etag` only that version: else PreconditionFailed, or NotFound where there is none. Not
        all stores know it; not all that do not say so.
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
        """CopyObject of at most 5 GiB within the bucket, of this version of the source only.

        Without `options` everything is as the source's but for what the bucket sets; with
        `options` content type and metadata are replaced by theirs, unless `keep_metadata`.
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
        """UploadPartCopy of the half-open range [start, stop) of this version of the source.

        `checksum` is which one the upload was created with: it is what S3 tells of the part.
        """

    def interrupt(self) -> None:
        """Fail everything under way, and everything that is asked later, with Interrupted."""

    def close(self) -> None:
        """Interrupt. Connections and threads go when nothing refers to the client any more."""
