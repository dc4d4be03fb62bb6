"""An `ObjectClient` in memory, which tests script: slow, faulty, with changing objects.

By default a small thread pool answers every request, like the real client. With `stepped=True`
nothing is answered until the test calls `step`. `inject` sets faults for the next requests of a
kind. `script` sets a function of the request that returns a fault, and may also change the objects.
Every request is recorded.
"""

import functools
import hashlib
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

from mountpoint.errors import (
    AccessDenied,
    AlreadyExists,
    BadAnswer,
    BadDigest,
    Interrupted,
    NoSuchUpload,
    NotFound,
    NotOffered,
    PreconditionFailed,
    S3Error,
    TooLarge,
    TransportFault,
    WrongOffset,
)
from mountpoint.native._lane import LaneSource
from mountpoint.s3.capabilities import Capabilities
from mountpoint.s3.client import (
    ALWAYS,
    Body,
    BodySink,
    Checksum,
    ChecksumName,
    Condition,
    ListPage,
    ObjectInfo,
    PartDone,
    PendingUpload,
    PutOptions,
    Stored,
    Transfer,
    UploadPage,
    Written,
)
from mountpoint.s3.wire import checksum
from mountpoint.s3.wire.checksum import encoded
from mountpoint.upload.parts import are_equal

T = TypeVar("T")

#: Protection against a hang, not a measure of speed.
SAFE_S = 60.0
MTIME_NS = 1_700_000_000_000_000_000
REQUEST_ID = "FAKE0123456789"
ARCHIVE_CLASSES = ("GLACIER", "DEEP_ARCHIVE")


@dataclass(frozen=True)
class Request:
    """A recorded request. `start` and `stop` are a GET's range."""

    kind: str  # "head", "list", "get", or the name of a writing method
    key: bytes  # of "list": the prefix
    start: int = 0
    stop: int = 0
    if_match: str | None = None
    token: str | None = None
    start_after: bytes | None = None
    max_keys: int = 0
    flat: bool = False
    number: int = 0  # of a part
    size_bytes: int = 0  # of a write
    source: bytes = b""  # of a copy
    condition: Condition = ALWAYS


@dataclass(frozen=True)
class Fault:
    """The faults of one request, in the order in which they would occur."""

    delay_s: float = 0.0  #: wait first, or until cancelled
    silent: bool = False  #: no answer until cancelled
    error: Exception | None = None  #: the answer (for a GET after `cut` bytes, if given)
    lost: bool = False  #: not for GETs: carried out, but answered with `error` or a TransportFault
    etag: str | None = None  #: headers of another version
    no_headers: bool = False  #: a body without headers
    shift: int = 0  #: the body claims to start this much later
    cut: int | None = None  #: only this many bytes of the body
    extra: bytes = b""  #: additional bytes after the body
    hang: bool = False  #: nothing follows the sent bytes, and no end until cancelled


@functools.lru_cache(8)  # many objects have the same content
def etag_of(data: bytes) -> str:
    """Return the ETag of a plain upload."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def list_page(
    objects: Mapping[bytes, ObjectInfo],
    prefix: bytes,
    token: str | None,
    max_keys: int,
    start_after: bytes | None = None,
) -> ListPage:
    """Return a page as S3 lists it with the delimiter "/": in byte order, prefixes grouped."""
    assert token is None or start_after is None
    after = None if token is None else bytes.fromhex(token.removeprefix("after-"))
    page = ListPage([], [])
    last = None
    keys = sorted(key for key in objects if key.startswith(prefix))
    for key in keys[bisect_right(keys, after or start_after or b"") :]:
        head, slash, _ = key[len(prefix) :].partition(b"/")
        item = prefix + head + slash
        if item == last or (after is not None and item <= after):
            continue
        if len(page.objects) + len(page.prefixes) == max_keys:
            assert last is not None
            return replace(page, next_token=f"after-{last.hex()}")
        if slash:
            page.prefixes.append(item)
        else:
            page.objects.append(objects[key])
        last = item
    return page


def path_page(
    objects: Mapping[bytes, ObjectInfo],
    prefix: bytes,
    token: str | None,
    max_keys: int,
    start_after: bytes | None = None,
) -> ListPage:
    """Return a page of a store with real folders: ordered by name, files before folders."""
    assert token is None or start_after is None
    items = {
        (head, slash)
        for key in objects
        if key.startswith(prefix)
        for head, slash, _ in [key[len(prefix) :].partition(b"/")]
    }
    after: tuple[bytes, ...] = ()
    if start_after is not None:
        after = (start_after[len(prefix) :], b"/")
    elif token is not None:
        name, _, kind = token.partition(".")
        after = (bytes.fromhex(name), kind.encode())
    rest = sorted(item for item in items if item > after)
    shown = rest[:max_keys]
    return ListPage(
        [objects[prefix + name] for name, slash in shown if not slash],
        [prefix + name + slash for name, slash in shown if slash],
        None if shown == rest else f"{shown[-1][0].hex()}.{shown[-1][1].decode()}",
    )


@dataclass
class Upload:
    """A pending multipart upload."""

    key: bytes
    options: PutOptions
    parts: dict[int, tuple[str, bytes]]  # ETag and bytes, by number


def sum_of(name: str, data: bytes) -> bytes:
    """Return a checksum."""
    hashed = checksum.ALGORITHMS[name].new()
    hashed.update(data)
    return hashed.digest()


class FakeClient:
    """An `ObjectClient`. Use it in a `with`, so that its threads end.

    Other stores: without `knows_checksums` the store ignores checksums, unless it refuses them.
    Without `knows_conditions` it ignores the conditions of writes. Without `tells_of_copies` it
    returns no checksum for copied parts. With `ignores_conditions` it accepts the conditions of
    copies and deletes, and ignores them.
    """

    verifies = True
    lists_in_order = True
    is_directory = False  # tests may set it

    def __init__(
        self,
        objects: Mapping[bytes, bytes] | None = None,
        *,
        stepped: bool = False,
        chunk_bytes: int | None = None,
        page_size: int = 1000,
        threads: int = 4,
    ) -> None:
        self.capabilities = Capabilities()
        self.script: Callable[[Request], Fault | None] | None = None
        self.chunk_bytes = chunk_bytes
        self.page_size = page_size
        self.requests: list[Request] = []
        self.delivered_bytes = 0
        self.cancelled = 0  #: requests that were cancelled before their end
        self.knows_checksums = True
        self.refuses_checksums: S3Error | None = None  #: the error
        self.refuses_unequal_parts = False  #: when they are completed, like R2
        self.refuses_copied_parts: S3Error | None = None  #: of uploads with checksums
        self.knows_conditions = True
        self.tells_of_copies = True
        self.ignores_conditions = False
        self.max_copy_bytes = 5 << 30
        self.min_part_bytes = 1  #: S3 has 5 MiB
        self.max_parts = 10_000  #: of an object with appends
        self._lock = threading.Lock()  # guards everything below
        self._objects: dict[bytes, tuple[ObjectInfo, bytes]] = {}
        self._checksums: dict[bytes, dict[str, str]] = {}
        self._checksum_types: dict[bytes, str] = {}  # if a test sets it
        self._options: dict[bytes, PutOptions] = {}
        self.uploads: dict[str, Upload] = {}
        self._uploads_begun = 0
        self._parts: dict[bytes, int] = {}  # number of appends to an object, plus 1
        self._renames: dict[str, Any] = {}  # by token
        self._faults: list[tuple[str, Fault]] = []
        self._under_way: dict[_Exchange, None] = {}
        self._delivering = 0  # outcomes that a caller is receiving; it may send more requests
        self._waiting: list[_Exchange] = []
        self._interrupted = False
        self._stepped = stepped
        self._pool = ThreadPoolExecutor(threads)
        for key, data in (objects or {}).items():
            self.put(key, data)

    def be_unknown(self) -> None:
        """Start without knowledge of the store's features, as for stores other than AWS's."""
        self.capabilities = Capabilities(
            copies_parts=None, copies_with_checksums=None, equal_parts=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the bucket ---

    def put(
        self,
        key: bytes,
        data: bytes,
        *,
        mtime_ns: int = MTIME_NS,
        storage_class: str = "STANDARD",
        restored: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Put an object, which replaces the existing one."""
        info = ObjectInfo(
            key, len(data), mtime_ns, etag_of(data), storage_class, restored, metadata or {}
        )
        with self._lock:
            self._objects[key] = (info, data)
            self._checksums.pop(key, None)
            self._parts.pop(key, None)
            told = None if storage_class == "STANDARD" else storage_class
            self._options[key] = PutOptions(storage_class=told, metadata=metadata or {})
        return info

    def keep_checksum(
        self, key: bytes, name: str, *, of: bytes | None = None, kind: str = "FULL_OBJECT"
    ) -> None:
        """Store an object's checksum: of the bytes it was put with, or of others."""
        value = checksum.encoded(sum_of(name, self.content(key) if of is None else of))
        with self._lock:
            self._checksums[key] = {name: value}
            self._checksum_types[key] = kind

    def content(self, key: bytes) -> bytes:
        """Return the bytes of an object."""
        with self._lock:
            return self._objects[key][1]

    def contents(self) -> dict[bytes, bytes]:
        """Return the bytes of all objects, by key."""
        with self._lock:
            return {key: data for key, (_, data) in self._objects.items()}

    def options(self, key: bytes) -> PutOptions:
        """Return the options with which an object was put."""
        with self._lock:
            return self._options[key]

    def keys(self) -> list[bytes]:
        """Return the keys of all objects, in order."""
        with self._lock:
            return sorted(self._objects)

    def delete(self, key: bytes) -> None:
        """Delete an object."""
        with self._lock:
            del self._objects[key]

    def info(self, key: bytes) -> ObjectInfo:
        """Return the object's current description."""
        with self._lock:
            return self._objects[key][0]

    # --- the script ---

    def inject(self, kind: str, *faults: Fault) -> None:
        """Let the next requests of a kind fail, one fault each."""
        with self._lock:
            self._faults += [(kind, fault) for fault in faults]

    def step(self, count: int = 1, *, last_first: bool = False) -> int:
        """Answer the waiting requests of a stepped client; return their number."""
        for done in range(count):
            with self._lock:
                if not self._waiting:
                    return done
                exchange = self._waiting.pop(-1 if last_first else 0)
            self._run(exchange)
        return count

    # --- recorded requests ---

    def count(self, kind: str | None = None) -> int:
        """Return the number of requests so far, of one kind or all."""
        with self._lock:
            return sum(kind in (None, request.kind) for request in self.requests)

    def ranges(self) -> list[tuple[int, int]]:
        """Return the requested ranges of all GETs."""
        with self._lock:
            return [(each.start, each.stop) for each in self.requests if each.kind == "get"]

    def under_way(self) -> int:
        """Return the number of requests in flight."""
        with self._lock:
            return len(self._under_way)

    def quiet(self) -> None:
        """Wait until no request is in flight and all answers have been received."""
        until_s = time.monotonic() + SAFE_S
        while self._is_busy():
            assert time.monotonic() < until_s
            time.sleep(0.001)

    def _is_busy(self) -> bool:
        with self._lock:
            return bool(self._under_way or self._delivering)

    # --- ObjectClient ---

    def head(self, key: bytes) -> "Future[ObjectInfo]":
        """See ObjectClient."""

        def answer() -> ObjectInfo:
            return self._object(key)[0]

        return self._ask(Request("head", key), answer)

    def list(
        self,
        prefix: bytes,
        *,
        token: str | None = None,
        start_after: bytes | None = None,
        max_keys: int = 1000,
        flat: bool = False,
    ) -> "Future[ListPage]":
        """See ObjectClient."""
        request = Request(
            "list",
            prefix,
            token=token,
            start_after=start_after,
            max_keys=max_keys,
            flat=flat,
        )

        def answer() -> ListPage:
            with self._lock:
                objects = {key: info for key, (info, _) in self._objects.items()}
            page = self.flat_page(objects, request) if flat else self.page(objects, request)
            # A listing knows nothing of restores and metadata.
            known = [replace(info, restored=False, metadata=None) for info in page.objects]
            return replace(page, objects=known)

        return self._ask(request, answer)

    def page(self, objects: Mapping[bytes, ObjectInfo], request: Request) -> ListPage:
        """Answer a listing as S3 does; subclasses are other stores."""
        max_keys = min(request.max_keys, self.page_size)
        return list_page(objects, request.key, request.token, max_keys, request.start_after)

    def flat_page(self, objects: Mapping[bytes, ObjectInfo], request: Request) -> ListPage:
        """Answer a flat listing as S3 does; subclasses are other stores."""
        after = request.start_after or b""
        if request.token is not None:
            after = bytes.fromhex(request.token.removeprefix("after-"))
        keys = sorted(key for key in objects if key.startswith(request.key) and key > after)
        shown = keys[: min(request.max_keys, self.page_size)]
        token = None if shown == keys else f"after-{shown[-1].hex()}"
        return ListPage([objects[key] for key in shown], [], token)

    def lane_source(self, version: ObjectInfo) -> LaneSource | None:
        """See ByteSource: there is none."""

    def get(self, version: ObjectInfo, start: int, stop: int, sink: BodySink) -> Transfer:
        """See ByteSource."""
        assert 0 <= start < stop
        request = Request("get", version.key, start, stop, version.etag or None)
        download = _Download(self, request, sink)
        self._begin(download)
        return download

    def head_with_checksums(self, key: bytes) -> "Future[Stored]":
        """See ObjectClient."""

        def answer() -> Stored:
            info = self._object(key)[0]
            with self._lock:
                known = self._checksums.get(key, {}) if self.knows_checksums else {}
                options = self._options.get(key, PutOptions())
                kind = self._checksum_types.get(key, "")
                return Stored(info, dict(known), options, checksum_type=kind)

        return self._ask(Request("head", key), answer)

    def put_object(
        self, key: bytes, body: Body, options: PutOptions, condition: Condition = ALWAYS
    ) -> "Future[Written]":
        """See ObjectClient."""
        request = Request("put_object", key, size_bytes=body.size_bytes, condition=condition)

        def answer() -> Written:
            data = self._received(body)
            with self._lock:
                self._check(key, condition)
                return self._store(key, data, etag_of(data), options, body.checksum)

        return self._ask(request, answer)

    def append_object(
        self,
        key: bytes,
        body: Body,
        *,
        offset: int,
        options: PutOptions,
        condition: Condition = ALWAYS,
    ) -> "Future[Written]":
        """See ObjectClient."""
        size_bytes = body.size_bytes
        request = Request("append_object", key, offset, size_bytes=size_bytes, condition=condition)

        def answer() -> Written:
            self._only_in_directories()
            data = self._received(body)
            with self._lock:
                self._check(key, condition)
                info, before = self._objects.get(key, (None, b""))
                if offset != len(before):
                    raise WrongOffset("another size", code="InvalidWriteOffset", status=400)
                if self._parts.get(key, 0 if info is None else 1) == self.max_parts:
                    raise TooLarge("no more parts", code="TooManyParts", status=400)
                return self._append(key, before + data, options, body.checksum)

        return self._ask(request, answer)

    def _append(
        self, key: bytes, data: bytes, options: PutOptions, sent: Checksum | None
    ) -> Written:
        """Append bytes to an object (lock held)."""
        parts = self._parts.get(key, int(key in self._objects)) + 1
        # Different versions get different ETags, which are not MD5 sums.
        etag = f'"{key.hex()[:8]}{parts:08x}{len(data):016x}"'
        known = None
        if sent is not None and self.knows_checksums:
            known = Checksum(sent.name, checksum.encoded(sum_of(sent.name, data)))
        written = self._store(key, data, etag, options, known)
        self._parts[key] = parts
        return replace(written, checksum="")

    def rename_object(
        self, source: bytes, key: bytes, *, source_etag: str, condition: Condition, token: str
    ) -> "Future[None]":
        """See ObjectClient."""

        def answer() -> None:
            self._only_in_directories()
            with self._lock:
                asked = (source, key, source_etag, condition)
                before = self._renames.get(token)
                if before is not None and before != asked:
                    raise S3Error("the token", code="IdempotencyParameterMismatch", status=400)
                if before is not None:
                    return
            data = self._version(source, source_etag)
            with self._lock:
                there = key in self._objects
                if condition.absent and there:
                    raise AlreadyExists("not met", code="PreconditionFailed", status=412)
                self._check(key, condition)
                info, _ = self._objects.pop(source)
                self._objects[key] = replace(info, key=key), data
                self._checksums[key] = self._checksums.pop(source, {})
                self._parts[key] = self._parts.pop(source, 1)
                self._renames[token] = asked

        return self._ask(Request("rename_object", key, condition=condition), answer)

    def _only_in_directories(self) -> None:
        if not self.is_directory:
            raise NotOffered("only directory buckets support it")

    def create_upload(self, key: bytes, options: PutOptions) -> "Future[str]":
        """See ObjectClient."""

        def answer() -> str:
            self._refuse(options.checksum)
            with self._lock:
                self._uploads_begun += 1
                upload_id = f"upload-{self._uploads_begun}"
                self.uploads[upload_id] = Upload(key, options, {})
                return upload_id

        return self._ask(Request("create_upload", key), answer)

    def upload_part(self, key: bytes, upload_id: str, number: int, body: Body) -> "Future[Written]":
        """See ObjectClient."""
        assert 1 <= number <= 10_000
        request = Request("upload_part", key, number=number, size_bytes=body.size_bytes)

        def answer() -> Written:
            data = self._received(body)
            with self._lock:
                etag = etag_of(data)
                self._upload(key, upload_id).parts[number] = (etag, data)
                return Written(etag, self._answered_checksum(body.checksum), MTIME_NS)

        return self._ask(request, answer)

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
        """See ObjectClient."""
        request = Request("complete_upload", key, size_bytes=size_bytes, condition=condition)

        def answer() -> Written:
            self._refuse(checksum)
            with self._lock:
                upload = self._upload(key, upload_id)
                self._check(key, condition)
                return self._complete(upload, upload_id, parts, size_bytes, checksum)

        return self._ask(request, answer)

    def abort_upload(self, key: bytes, upload_id: str) -> "Future[None]":
        """See ObjectClient."""

        def answer() -> None:
            with self._lock:
                self._upload(key, upload_id)
                del self.uploads[upload_id]

        return self._ask(Request("abort_upload", key), answer)

    def list_uploads(
        self, prefix: bytes, *, after: tuple[bytes, str] | None = None
    ) -> "Future[UploadPage]":
        """See ObjectClient."""

        def answer() -> UploadPage:
            with self._lock:
                found = sorted((each.key, identity) for identity, each in self.uploads.items())
            found = [pair for pair in found if pair[0].startswith(prefix) and pair > (after or ())]
            shown = found[: self.page_size]
            uploads = [PendingUpload(name, identity, MTIME_NS) for name, identity in shown]
            return UploadPage(uploads, None if shown == found else shown[-1])

        return self._ask(Request("list_uploads", prefix), answer)

    def delete_object(self, key: bytes, *, etag: str | None = None) -> "Future[None]":
        """See ObjectClient."""
        condition = Condition(etag=etag)

        def answer() -> None:
            with self._lock:
                if not self.ignores_conditions:
                    self._check(key, condition)
                self._objects.pop(key, None)

        return self._ask(Request("delete_object", key, condition=condition), answer)

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
        """See ObjectClient."""
        request = Request("copy_object", key, condition=condition, source=source)

        def answer() -> Written:
            data = self._version(source, source_etag)
            if len(data) > self.max_copy_bytes:
                raise S3Error("too large", code="InvalidRequest", status=400)
            with self._lock:
                if not self.ignores_conditions:
                    self._check(key, condition)
                asked = options or PutOptions()
                if options is None or keep_metadata:
                    kept = self._options.get(source, PutOptions())
                    asked = replace(
                        asked,
                        content_type=kept.content_type,
                        metadata=kept.metadata,
                        headers=kept.headers,
                    )
                return self._store(key, data, etag_of(data), asked, None)

        return self._ask(request, answer)

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
        """See ObjectClient."""
        assert 1 <= number <= 10_000
        request = Request(
            "copy_part", key, start, stop, number=number, size_bytes=stop - start, source=source
        )

        def answer() -> Written:
            data = self._version(source, source_etag)
            if not start < stop <= len(data) or len(data) <= self.min_part_bytes:
                raise S3Error("the range", code="InvalidArgument", status=400)
            data = data[start:stop]
            with self._lock:
                etag = etag_of(data)
                upload = self._upload(key, upload_id)
                if self.refuses_copied_parts is not None and upload.options.checksum is not None:
                    raise self.refuses_copied_parts
                upload.parts[number] = (etag, data)
                assert upload.options.checksum == checksum
                known = self.knows_checksums and self.tells_of_copies and checksum
                return Written(etag, encoded(sum_of(known, data)) if known else "", MTIME_NS)

        return self._ask(request, answer)

    def interrupt(self) -> None:
        """See ObjectClient."""
        with self._lock:
            self._interrupted = True
            under_way = list(self._under_way)
        for exchange in under_way:
            exchange.end(None, Interrupted("the mount is ending"))

    def close(self) -> None:
        """See ObjectClient."""
        self.interrupt()
        self._pool.shutdown()

    # --- inside ---

    def _received(self, body: Body) -> bytes:
        """Return the bytes of a body; BadDigest if they do not match its checksum."""
        self._refuse(body.checksum)
        data = b"".join(bytes(piece) for piece in body.pieces)
        assert len(data) == body.size_bytes
        known = body.checksum if self.knows_checksums else None
        if known is not None and checksum.encoded(sum_of(known.name, data)) != known.value:
            raise BadDigest("not what was sent", code="BadDigest", status=400)
        return data

    def _refuse(self, checksum: Checksum | ChecksumName | None) -> None:
        if checksum is not None and self.refuses_checksums is not None:
            raise self.refuses_checksums

    def _answered_checksum(self, checksum: Checksum | None) -> str:
        return checksum.value if checksum is not None and self.knows_checksums else ""

    def _check(self, key: bytes, condition: Condition) -> None:
        """Raise an error unless the condition is met (lock held)."""
        if condition == ALWAYS:
            return
        if not self.knows_conditions:
            raise NotOffered("a header", code="NotImplemented", status=501)
        there = self._objects.get(key)
        if condition.etag is not None and there is None:
            raise NotFound("no such key", code="NoSuchKey", status=404)
        etag = None if there is None else there[0].etag
        if (condition.absent and there is not None) or condition.etag not in (None, etag):
            raise PreconditionFailed("not met", code="PreconditionFailed", status=412)

    def _upload(self, key: bytes, upload_id: str) -> Upload:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise NoSuchUpload("no such upload", code="NoSuchUpload", status=404)
        return upload

    def _version(self, key: bytes, etag: str) -> bytes:
        info, data = self._object(key)
        if info.etag != etag:
            raise PreconditionFailed("replaced", code="PreconditionFailed", status=412)
        return data

    def _store(
        self, key: bytes, data: bytes, etag: str, options: PutOptions, known: Checksum | None
    ) -> Written:
        """Store an object (lock held)."""
        default = "EXPRESS_ONEZONE" if self.is_directory else "STANDARD"
        storage_class = options.storage_class or default
        self._parts[key] = 1
        info = ObjectInfo(key, len(data), MTIME_NS, etag, storage_class, metadata=options.metadata)
        self._objects[key] = info, data
        self._checksums[key] = {} if known is None else {known.name: known.value}
        self._options[key] = options
        return Written(etag, self._answered_checksum(known), MTIME_NS)

    def _complete(
        self,
        upload: Upload,
        upload_id: str,
        listed: Sequence[PartDone],
        size_bytes: int,
        expected: Checksum | None,
    ) -> Written:
        """Make an object from the parts of an upload (lock held)."""
        numbers = [part.number for part in listed]
        if not listed or numbers != sorted(set(numbers)):
            raise S3Error("the order of parts", code="InvalidPartOrder", status=400)
        found = []
        for part in listed:
            etag, data = upload.parts.get(part.number, ("", b""))
            if etag != part.etag:
                raise S3Error("no such part", code="InvalidPart", status=400)
            found.append(data)
        if any(len(data) < self.min_part_bytes for data in found[:-1]):
            raise S3Error("a part is too small", code="EntityTooSmall", status=400)
        if self.refuses_unequal_parts and not are_equal([len(data) for data in found]):
            raise S3Error("not the same length", code="InvalidPart", status=400)
        if sum(map(len, found)) != size_bytes:
            raise S3Error("not all bytes are there", code="InvalidRequest", status=400)
        known = None
        name = upload.options.checksum
        if name is not None and self.knows_checksums:
            self._compare(listed, found, name)
            parts = [(sum_of(name, data), len(data)) for data in found]
            known = Checksum(name, checksum.of_parts(name, parts))
            if expected not in (None, known):
                raise BadDigest("another checksum", code="BadDigest", status=400)
        del self.uploads[upload_id]
        etags = b"".join(bytes.fromhex(part.etag.strip('"')) for part in listed)
        etag = f'{etag_of(etags)[:-1]}-{len(found)}"'
        return self._store(upload.key, b"".join(found), etag, upload.options, known)

    def _compare(
        self, listed: Sequence[PartDone], found: Sequence[bytes], name: ChecksumName
    ) -> None:
        for part, data in zip(listed, found, strict=True):
            if part.checksum is None and self.tells_of_copies:
                raise S3Error("a part without a checksum", code="InvalidRequest", status=400)
            known = Checksum(name, encoded(sum_of(name, data)))
            if part.checksum not in (None, known):
                raise S3Error("not the part's checksum", code="InvalidPart", status=400)

    def _ask(self, request: Request, answer: Callable[[], T]) -> "Future[T]":
        inquiry = _Inquiry(self, request, answer)
        self._begin(inquiry)
        return inquiry.future

    def _begin(self, exchange: "_Exchange") -> None:
        with self._lock:
            self.requests.append(exchange.request)
            self._under_way[exchange] = None
            interrupted = self._interrupted
            if self._stepped:
                self._waiting.append(exchange)
        if interrupted:
            exchange.end(None, Interrupted("the mount is ending"))
        elif not self._stepped:
            self._pool.submit(self._run, exchange)

    def _run(self, exchange: "_Exchange") -> None:
        fault = self._next_fault(exchange.request)
        if fault.delay_s:
            exchange.ended.wait(fault.delay_s)
        if fault.silent or exchange.ended.is_set():
            return
        try:
            exchange.answer(fault)
        except Exception as error:
            exchange.end(None, error)

    def _next_fault(self, request: Request) -> Fault:
        if self.script is not None:
            scripted = self.script(request)
            if scripted is not None:
                return scripted
        with self._lock:
            for index, (kind, fault) in enumerate(self._faults):
                if kind == request.kind:
                    del self._faults[index]
                    return fault
        return Fault()

    def _object(self, key: bytes) -> tuple[ObjectInfo, bytes]:
        with self._lock:
            if key not in self._objects:
                raise NotFound("no such key", code="NoSuchKey", status=404, request_id=REQUEST_ID)
            return self._objects[key]

    def _download(self, request: Request) -> tuple[ObjectInfo, bytes]:
        """Return the answer to a GET, or raise the refusal."""
        info, data = self._object(request.key)
        if request.if_match not in (None, info.etag):
            raise PreconditionFailed(
                "replaced", code="PreconditionFailed", status=412, request_id=REQUEST_ID
            )
        if info.storage_class in ARCHIVE_CLASSES and not info.restored:
            raise AccessDenied(
                "archived", code="InvalidObjectState", status=403, request_id=REQUEST_ID
            )
        if request.stop > len(data):
            raise BadAnswer(f"asked for bytes {request.start}-{request.stop} of {len(data)}")
        return info, data[request.start : request.stop]

    def _first_end(self, exchange: "_Exchange") -> bool:
        with self._lock:
            if exchange not in self._under_way:
                return False
            del self._under_way[exchange]
            self._delivering += 1
            if exchange in self._waiting:
                self._waiting.remove(exchange)
            exchange.ended.set()
            return True

    def _has_ended(self) -> None:
        with self._lock:
            self._delivering -= 1


class _Exchange:
    """One request and its answer, which is delivered once."""

    def __init__(self, client: FakeClient, request: Request) -> None:
        self.client = client
        self.request = request
        self.ended = threading.Event()

    def answer(self, fault: Fault) -> None:
        """Answer the request, with the given fault."""
        raise NotImplementedError

    def end(self, result: Any, error: Exception | None) -> None:
        """Deliver the outcome, once."""
        if self.client._first_end(self):
            try:
                self.deliver(result, error)
            finally:
                self.client._has_ended()

    def deliver(self, result: Any, error: Exception | None) -> None:
        """Pass the outcome to the caller."""
        raise NotImplementedError

    def cancel(self) -> None:
        """See Transfer."""
        if not self.ended.is_set():
            self.client.cancelled += 1
            self.end(None, TransportFault("cancelled"))


class _Inquiry(_Exchange, Generic[T]):
    """All requests except GETs."""

    def __init__(self, client: FakeClient, request: Request, ask: Callable[[], T]) -> None:
        super().__init__(client, request)
        self.ask = ask
        self.future: Future[T] = Future()
        self.future.add_done_callback(self._on_future)

    def answer(self, fault: Fault) -> None:
        if fault.lost:
            self.ask()
            raise fault.error or TransportFault("the answer was lost")
        if fault.error is not None:
            raise fault.error
        self.end(self.ask(), None)

    def deliver(self, result: Any, error: Exception | None) -> None:
        self.__dict__.pop("ask", None)  # free the body without the collector
        try:
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        except InvalidStateError:
            pass  # cancelled

    def _on_future(self, future: "Future[T]") -> None:
        if future.cancelled():
            self.cancel()


class _Download(_Exchange):
    """A ranged GET."""

    def __init__(self, client: FakeClient, request: Request, sink: BodySink) -> None:
        super().__init__(client, request)
        self.sink = sink

    def answer(self, fault: Fault) -> None:
        if fault.error is not None and fault.cut is None:
            raise fault.error
        info, body = self.client._download(self.request)
        if fault.etag is not None:
            info = replace(info, etag=fault.etag)
        if not fault.no_headers:
            self.sink.on_headers(info)
        body = body[: fault.cut] + fault.extra
        step = self.client.chunk_bytes or max(len(body), 1)
        for position in range(0, len(body), step):
            if self.ended.is_set():
                return
            chunk = body[position : position + step]
            with self.client._lock:
                self.client.delivered_bytes += len(chunk)
            self.sink.on_body(chunk, self.request.start + fault.shift + position)
        if not fault.hang:
            self.end(None, fault.error)

    def deliver(self, result: Any, error: Exception | None) -> None:
        self.sink.finish(error)
