"""The shared cache: small objects in a bucket that mounts on any number of machines use.

Each object of up to `MAX_OBJECT_BYTES` is one block, and each block is an object of that bucket.
Its key is the path that the block's file would have in a cache directory, and its body is what that
file would have. So another version, another object, and damaged bytes are noticed in the same way.

`get` asks that bucket before the mounted one. If the block is missing, bad, or late, or the bucket
cannot be used, the same part is requested from the mounted bucket: the reader notices nothing. When
a reader reaches bytes whose block was missing, `arrived` queues them (`filling`).

`lacks` asks for the blocks of versions that nobody reads yet (`mount-s3ctl warm`). The next read of
one that is missing fetches the whole object and queues it (`wants`).

Nothing is removed: that is for a lifecycle rule of the bucket.
"""

import functools
import time
from collections.abc import Callable, Sequence

import structlog

from mountpoint._fastpath import Part
from mountpoint.cache.blocks._format import BLOCK_BYTES
from mountpoint.cache.filling import Pieces
from mountpoint.cache.health import Health
from mountpoint.cache.identity import Identity
from mountpoint.cache.reading import PartRead
from mountpoint.cache.shared.filling import SharedBlock, SharedFiller
from mountpoint.cache.shared.known import Known, State
from mountpoint.errors import BadAnswer, ChecksumMismatch, NotFound, S3Error
from mountpoint.metrics.counters import Counters
from mountpoint.s3.client import ObjectClient, ObjectInfo, Transfer
from mountpoint.s3.retry import RetryPolicy

log = structlog.get_logger(__name__)

#: Larger objects are not kept, as in mountpoint-s3. What a nearby bucket saves is the time to the
#: first byte; large objects are fetched ahead, and each of their blocks would cost two requests.
MAX_OBJECT_BYTES = BLOCK_BYTES
#: After this time the mounted bucket is asked. `sweep` looks once a second.
LATE_S = 1.0
#: When the mount ends, what is queued may take so long.
END_S = 2.0


class SharedCache:
    """The blocks of a mount of `bucket` at `endpoint`, in the bucket of `client`. Thread-safe.

    `name` is that bucket's name. `queue_bytes` is the most memory that blocks use while they wait
    to be sent.
    """

    def __init__(
        self,
        client: ObjectClient,
        name: str,
        endpoint: str,
        bucket: str,
        counters: Counters,
        retry_policy: RetryPolicy,
        *,
        queue_bytes: int,
    ) -> None:
        # dependencies
        self.client = client
        self.counters = counters
        self.known = Known()
        self.reading = Health(f"s3://{name}", "reading")
        self._writing = Health(f"s3://{name}", "writing")
        self._retry_policy = retry_policy
        self._filler = SharedFiller(
            client, self._writing, counters, retry_policy, self.known, queue_bytes=queue_bytes
        )
        # constants
        self._endpoint = endpoint
        self._bucket = bucket
        self.queue_bytes = queue_bytes
        # mutable
        self.reads: set[SharedRead] = set()  # in flight; each change is one step of the interpreter

    def get(self, info: ObjectInfo, part: Part, instead: Callable[[], Transfer]) -> None:
        """Request a part of a version from here, or by `instead` from the mounted bucket."""
        block = self._block(info, part) if self.reading.usable else None
        if block is None or self.known.state(block.key) is State.MISSING:
            part.attach(instead())
            return
        read = SharedRead(self, block, part, instead)
        self.reads.add(read)
        part.attach(read)
        read.start()

    def arrived(self, info: ObjectInfo, part: Part) -> None:
        """Keep the bytes of a ready part if its block was missing. Never waits."""
        if not self.known.any_missing:
            return
        block = self._block(info, part)
        if block is not None and self.known.take_missing(block.key):
            self._filler.offer(block, memoryview(part.data))

    def keep_written(self, info: ObjectInfo, pieces: Pieces) -> None:
        """Keep the bytes of a version that was written here. Never waits."""
        block = self._block_of(info)
        if block is not None:
            self._filler.offer(block, memoryview(b"".join(pieces)))

    def takes(self, info: ObjectInfo) -> bool:
        """Whether a version is kept here."""
        return self._block_of(info) is not None

    def wants(self, info: ObjectInfo) -> bool:
        """Whether the block of a version is known to be missing."""
        if not self.known.any_missing:
            return False
        block = self._block_of(info)
        return block is not None and self.known.state(block.key) is State.MISSING

    def lacks(self, infos: Sequence[ObjectInfo]) -> list[bool]:
        """Return of which versions that are kept here the block is missing, or not sent yet.

        Sends one HEAD for each of which nothing is known, all at once, and waits. If the bucket
        fails, it is not `usable` for a while, and the answer means nothing. Raises Interrupted.
        """
        blocks = [self._block_of(info) for info in infos]
        looks = [
            (block, self._retry_policy.ask(functools.partial(self.client.head, block.key)))
            for block in blocks
            if block is not None and self.known.state(block.key) is None
        ]
        for block, call in looks:
            try:
                whole = call.answer().size_bytes == block.body_bytes
            except NotFound:
                whole = False
            except S3Error as error:
                self.counters.add("cache_shared_errors")
                self.reading.failed(0, why=str(error) or type(error).__name__)
                break
            self.known.note(block.key, State.THERE if whole else State.MISSING)
        return [
            block is not None and self.known.state(block.key) is not State.THERE for block in blocks
        ]

    @property
    def usable(self) -> bool:
        """Whether the bucket is read and written at the moment."""
        return self.reading.usable and self._writing.usable

    @property
    def queued_bytes(self) -> int:
        """The bytes of blocks that are not sent yet."""
        return self._filler.held_bytes

    def sweep(self) -> None:
        """Request what is late from the mounted bucket; called once a second."""
        oldest_s = time.monotonic() - LATE_S
        for read in [each for each in self.reads.copy() if each.begun_s < oldest_s]:
            self.reading.failed(0, why="an answer is taking too long")
            read.give_up()

    def close(self) -> None:
        """Send what is queued, within `END_S`, and end the threads."""
        self._filler.wait(END_S)
        self._filler.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait until all queued blocks are sent; return whether they are."""
        return self._filler.wait(timeout_s)

    def _block(self, info: ObjectInfo, part: Part) -> SharedBlock | None:
        """Return the block that has exactly the bytes of a part; None if there cannot be one."""
        return self._block_of(info) if part.stop - part.start == info.size_bytes else None

    def _block_of(self, info: ObjectInfo) -> SharedBlock | None:
        """Return the block of a version; None if it is not kept here."""
        if not 0 < info.size_bytes <= MAX_OBJECT_BYTES:
            return None
        identity = Identity.of(self._endpoint, self._bucket, info)
        return None if identity is None else SharedBlock.of(identity)


class SharedRead(PartRead):
    """A part that is one block of the shared cache; also the `BodySink` of its request."""

    def __init__(
        self,
        cache: SharedCache,
        block: SharedBlock,
        part: Part,
        instead: Callable[[], Transfer],
    ) -> None:
        super().__init__(part, instead)
        # dependencies
        self._cache = cache
        # constants
        self._block = block
        self.begun_s = time.monotonic()
        # mutable
        self._chunks: list[bytes] = []
        self._transfer: Transfer | None = None

    def start(self) -> None:
        """Send the request."""
        size_bytes = self._block.body_bytes
        info = ObjectInfo(self._block.key, size_bytes, 0, "")
        self._transfer = self._cache.client.get(info, 0, size_bytes, self)

    def on_headers(self, info: ObjectInfo) -> None:
        """See BodySink."""

    def on_body(self, chunk: bytes, offset: int) -> None:
        """See BodySink."""
        self._chunks.append(chunk)

    def finish(self, error: Exception | None) -> None:
        """Deliver the block if it is right."""
        self._transfer = None
        self._cache.reads.discard(self)
        part = self._part
        if part is None:  # cancelled, or late
            return
        content, self._chunks = b"".join(self._chunks), []
        bad = isinstance(error, BadAnswer | ChecksumMismatch) or (
            error is None and not self._block.is_body(content)
        )
        health, counters = self._cache.reading, self._cache.counters
        if bad:
            log.warning(
                "a damaged block in the shared cache is not used", key=self._block.key.decode()
            )
            counters.add("cache_shared_bad_blocks")
            self._cache.known.note(self._block.key, State.MISSING)
        elif isinstance(error, NotFound):
            counters.add("cache_shared_misses")
            self._cache.known.note(self._block.key, State.MISSING)
            health.succeeded()
        elif isinstance(error, S3Error):
            counters.add("cache_shared_errors")
            health.failed(0, why=str(error) or type(error).__name__)
        elif error is None and self._take() is not None:
            counters.add("cache_shared_hits")
            self._cache.known.note(self._block.key, State.THERE)
            counters.add("cache_shared_bytes_read", self._block.size_bytes)
            health.succeeded()
            part.on_headers(ObjectInfo(b"", self._block.size_bytes, 0, part.etag))
            part.on_body(content[: self._block.size_bytes], 0)
            part.finish(None)
        self.give_up()

    def _stop(self) -> None:
        self._cache.reads.discard(self)
        transfer = self._transfer
        if transfer is not None:
            transfer.cancel()
