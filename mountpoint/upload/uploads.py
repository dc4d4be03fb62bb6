"""All uploads of a mount: how they are made, what they share, and how they end.

They share the connection. The number of parts in flight together is learnt as for reads
(`transfer/concurrency`) and divided among the uploads. A part may take four times as long as recent
parts took. Until there are some, it may take as long as all bytes in flight need on the slowest
supported connection, because parts that are in flight together arrive late together.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from mountpoint.config import MIB, WriteConfig
from mountpoint.errors import Interrupted, S3Error
from mountpoint.s3.client import ALWAYS, Body, Condition, ObjectClient, ObjectInfo, PutOptions
from mountpoint.s3.content_types import by_name
from mountpoint.s3.retry import RetryPolicy
from mountpoint.system.spill import Spill
from mountpoint.transfer.concurrency import ConcurrencyController
from mountpoint.transfer.kept_bodies import Room
from mountpoint.transfer.memory_budget import Budget
from mountpoint.upload.append import AppendUpload
from mountpoint.upload.multipart import ABORT_S
from mountpoint.upload.parts import S3_LIMITS, Limits, part_size
from mountpoint.upload.pending_journal import Journal
from mountpoint.upload.requests import SLOWEST_BYTES_PER_S, UploadScheduler
from mountpoint.upload.sequential import SequentialUpload
from mountpoint.upload.upload import Upload

log = structlog.get_logger(__name__)

#: A part may take this many times as long per byte as the slowest of the last KNOWN_PARTS parts.
SLACK = 4.0
KNOWN_PARTS = 32


class Uploads(UploadScheduler[SequentialUpload]):
    """Makes the uploads of a mount. Thread-safe.

    `on_written` gets each new object that was sent as one body, with that body. It must not wait.
    With `room` it also gets larger ones, as long as their bytes fit there until they are complete.
    """

    def __init__(
        self,
        client: ObjectClient,
        config: WriteConfig,
        budget: Budget,
        retry_policy: RetryPolicy,
        limits: Limits = S3_LIMITS,
        journal: Journal | None = None,
        spill: Spill | None = None,
        on_written: Callable[[ObjectInfo, Body], None] | None = None,
        room: Room | None = None,
    ) -> None:
        # dependencies
        self._on_written = on_written
        self._room = room
        self._client = client
        self._config = config
        self._budget = budget
        self._retry_policy = retry_policy
        self._spill = spill or Spill(())
        self._journal = journal
        # constants
        self._limits = limits
        self._max_bytes = budget.limit_bytes // 4  # in flight: the CRT has a copy of these bytes
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._open: set[SequentialUpload] = set()
        # The bytes in flight of each upload that sends.
        self._bytes_by_upload: dict[SequentialUpload, int] = {}
        self._in_flight_bytes = 0  # invariant: the sum of _bytes_by_upload
        self._queue: dict[SequentialUpload, None] = {}  # uploads that wait for a slot, in order
        self._concurrency = ConcurrencyController(config.max_ahead_bytes // config.part_size_bytes)
        self._s_per_byte: deque[float] = deque(maxlen=KNOWN_PARTS)
        self._interrupted = False
        # mutable: whether objects may be written, as far as known; set in single steps
        self.may_write = False

    def upload(
        self,
        key: bytes,
        *,
        condition: Condition = ALWAYS,
        metadata: Mapping[str, str] | None = None,
        options: PutOptions | None = None,
        known_bytes: int | None = None,
        only_copied: bool = False,
    ) -> Upload:
        """Begin the upload of one object; no request is sent yet. Raises Interrupted.

        `options` replace the mount's own for this object. `known_bytes` is a lower bound of its
        size, if there is one. `only_copied`: all of its bytes are copied, none written.
        """
        upload = Upload(
            self._client,
            key,
            options=options or self._options(key, metadata),
            condition=condition,
            part_bytes=self._config.part_size_bytes,
            equal_bytes=self._equal_bytes(known_bytes, only_copied=only_copied),
            limits=self._limits,
            types_follow_names=self._config.content_types,
            lease=self._budget.lease(of_all=True),
            spill=self._spill,
            scheduler=self,
            retry_policy=self._retry_policy,
            room=self._room,
        )
        self._add(upload)
        return upload

    def _equal_bytes(self, known_bytes: int | None, *, only_copied: bool) -> int | None:
        """Return the size that all parts must have; None: parts may have any size.

        Until it is known what the server needs, parts have one size where that costs nothing: if
        the size of the file is known. Other files' parts grow, or their size would be limited.
        """
        capabilities = self._client.capabilities
        if capabilities.equal_parts is False:
            return None
        if known_bytes is None:
            return self._config.part_size_bytes if capabilities.equal_parts else None
        min_bytes = self._config.part_size_bytes
        if only_copied and capabilities.copies_parts is not False:
            min_bytes = max(min_bytes, self._limits.copied_part_bytes)
        return part_size(min_bytes, known_bytes)

    def appending(
        self,
        key: bytes,
        *,
        base: ObjectInfo | None,
        condition: Condition = ALWAYS,
        metadata: Mapping[str, str] | None = None,
    ) -> AppendUpload:
        """Begin to append to `base`, or to a new object; no request is sent yet. See AppendUpload.

        Raises NotOffered unless the bucket is a directory bucket, and Interrupted.
        """
        appending = AppendUpload(
            self._client,
            key,
            base=base,
            condition=condition,
            options=self._options(key, metadata),
            part_bytes=self._config.part_size_bytes,
            lease=self._budget.lease(of_all=True),
            spill=self._spill,
            scheduler=self,
            retry_policy=self._retry_policy,
        )
        self._add(appending)
        return appending

    def _options(self, key: bytes, metadata: Mapping[str, str] | None) -> PutOptions:
        options = PutOptions(
            storage_class=self._config.storage_class,
            content_type=by_name(key) if self._config.content_types else None,
            metadata=metadata or {},
            checksum=self._config.checksum,
        )
        return self.encrypted(options)

    def _add(self, upload: SequentialUpload) -> None:
        with self._lock:
            if self._interrupted:
                raise Interrupted("the mount is ending")
            self._open.add(upload)

    def encrypted(self, options: PutOptions) -> PutOptions:
        """Return options with the encryption of this mount's objects."""
        sse, sse_kms_key_id = self._config.sse, self._config.sse_kms_key_id
        return replace(options, sse=sse, sse_kms_key_id=sse_kms_key_id)

    def abort_unused(self, key: bytes, upload_id: str) -> None:
        """Abort a multipart upload that was begun as a test. Waits; raises Interrupted."""
        try:
            self._retry_policy.ask(lambda: self._client.abort_upload(key, upload_id)).answer()
        except S3Error as error:
            log.warning("an upload may remain in the bucket", key=key, error=str(error))
        else:
            self.multipart_ended(upload_id)

    def interrupt(self) -> None:
        """Give up all uploads: fail their writers, remove their parts. Waits 5 seconds at most.

        Called at the end of the mount, before the client is interrupted: later no upload could be
        aborted.
        """
        with self._lock:
            self._interrupted = True
            uploads = list(self._open)
        for upload in uploads:
            upload.fail(Interrupted("the mount is ending"))
        until_s = time.monotonic() + ABORT_S
        for upload in uploads:
            upload.abort(until_s)

    def sweep(self) -> None:
        """Send due requests of uploads without a waiting thread again. Called once a second."""
        with self._lock:
            uploads = list(self._open)
        for upload in uploads:
            upload.drive()

    # --- UploadScheduler ---

    def take_slot(
        self, upload: SequentialUpload, in_flight: int, size_bytes: int, *, queues: bool = True
    ) -> bool:
        """See UploadScheduler."""
        with self._lock:
            # It has its share from now on, also while it waits.
            self._bytes_by_upload.setdefault(upload, 0)
            if in_flight >= max(self._concurrency.parts // len(self._bytes_by_upload), 1):
                self._queue.pop(upload, None)  # it has to wait for its own parts first
                return False
            # All together may have as many bytes as one upload could have alone.
            max_bytes = self._concurrency.parts * max(size_bytes, self._config.part_size_bytes)
            fits = self._in_flight_bytes + size_bytes <= min(max_bytes, self._max_bytes)
            first = next(iter(self._queue), upload) is upload
            if not first or (self._in_flight_bytes and not fits):
                if queues:
                    self._queue.setdefault(upload)
                return False
            self._queue.pop(upload, None)
            self._bytes_by_upload[upload] += size_bytes
            self._in_flight_bytes += size_bytes
            return True

    def release_slot(self, upload: SequentialUpload, size_bytes: int) -> None:
        """See UploadScheduler."""
        with self._lock:
            self._in_flight_bytes -= size_bytes
            self._bytes_by_upload[upload] -= size_bytes
            if not self._bytes_by_upload[upload]:
                del self._bytes_by_upload[upload]

    def busy(self) -> bool:
        """See UploadScheduler."""
        return self._in_flight_bytes > 0

    def arrived(self, size_bytes: int, duration_s: float, *, waited: bool) -> None:
        """See UploadScheduler."""
        with self._lock:
            if size_bytes < MIB:  # mostly latency
                return
            self._s_per_byte.append(duration_s / size_bytes)
            if size_bytes == self._config.part_size_bytes:
                before = self._concurrency.parts
                self._concurrency.arrived(duration_s, waited=waited)
                if self._concurrency.parts != before:
                    log.debug("parts in flight", parts=self._concurrency.parts, before=before)

    def allowed_s(self, size_bytes: int) -> float:
        """See UploadScheduler."""
        with self._lock:
            longest_s = self._in_flight_bytes / SLOWEST_BYTES_PER_S
            if self._s_per_byte:
                longest_s = min(longest_s, SLACK * max(self._s_per_byte) * size_bytes)
            return self._config.stall_s + longest_s

    def multipart_begun(self, key: bytes, upload_id: str) -> None:
        """See UploadScheduler."""
        if self._journal is not None:
            self._journal.begun(key, upload_id)

    def multipart_ended(self, upload_id: str) -> None:
        """See UploadScheduler."""
        if self._journal is not None:
            self._journal.ended(upload_id)

    def denied(self) -> None:
        """See UploadScheduler."""
        self.may_write = False

    def written(self, info: ObjectInfo, body: Body) -> None:
        """See UploadScheduler."""
        if self._on_written is not None:
            self._on_written(info, body)

    def closed(self, upload: SequentialUpload) -> None:
        """See UploadScheduler."""
        with self._lock:
            self._open.discard(upload)
            self._queue.pop(upload, None)
            self._in_flight_bytes -= self._bytes_by_upload.pop(upload, 0)
