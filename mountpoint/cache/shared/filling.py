"""Send blocks to the shared cache behind the readers' backs.

A few threads send what was offered, each one block at a time. If the queue is full, blocks are
dropped: the next reader fetches them from the mounted bucket again, and offers them again.
"""

import threading
from collections import deque
from dataclasses import dataclass

import structlog

from mountpoint.cache._files import crc32c_of, is_block, trailer_bytes, trailer_of
from mountpoint.cache.directory import FORMAT, NAME
from mountpoint.cache.health import Health
from mountpoint.cache.identity import Identity
from mountpoint.errors import Interrupted, S3Error
from mountpoint.metrics.counters import Counters
from mountpoint.s3.client import Body, Checksum, ObjectClient, PutOptions
from mountpoint.s3.fallback import Fallback, Terms
from mountpoint.s3.retry import RetryPolicy
from mountpoint.s3.wire.checksum import CRCS, encoded

log = structlog.get_logger(__name__)

#: All keys of the cache begin with this.
PREFIX = f"{NAME}/{FORMAT}/"
#: Requests in flight.
THREADS = 8


@dataclass(frozen=True, slots=True)
class SharedBlock:
    """The one block of a version of a small object."""

    key: bytes
    identity: bytes
    size_bytes: int

    @classmethod
    def of(cls, identity: Identity) -> "SharedBlock":
        """Return the block of a version."""
        key = f"{PREFIX}{identity.path}.0"
        return cls(key.encode(), identity.text, identity.size_bytes)

    @property
    def body_bytes(self) -> int:
        """The size of its object in the shared cache."""
        return self.size_bytes + trailer_bytes(self.identity, self.size_bytes)

    def body(self, data: memoryview) -> Body:
        """Return the body of its object for the bytes of the block."""
        trailer = trailer_of(self.identity, 0, data)
        crc = CRCS["crc32c"].of(trailer, crc32c_of(data))
        value = encoded(crc.to_bytes(4, "big"))
        return Body((data, trailer), len(data) + len(trailer), Checksum("crc32c", value))

    def is_body(self, content: bytes) -> bool:
        """Whether this is such a body: of this version, and without damage."""
        return is_block(self.identity, 0, self.size_bytes, content)


class SharedFiller:
    """The queue of blocks to be sent, of at most `queue_bytes`, and the threads that send."""

    def __init__(
        self,
        client: ObjectClient,
        health: Health,
        counters: Counters,
        retry_policy: RetryPolicy,
        *,
        queue_bytes: int,
    ) -> None:
        # dependencies
        self._client = client
        self._health = health
        self._counters = counters
        self._retry_policy = retry_policy
        # constants
        self._max_bytes = queue_bytes
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._queue: deque[tuple[SharedBlock, memoryview]] = deque()
        self._held_bytes = 0  # of blocks in the queue, and of those being sent
        self._idle = 0  # threads without a block
        self._threads = 0
        self._closed = False

    def offer(self, block: SharedBlock, data: memoryview) -> None:
        """Queue a block, or drop it if there is no room, or the bucket fails."""
        with self._changed:
            room = self._held_bytes + len(data) <= self._max_bytes and not self._closed
            queued = room and self._health.usable
            if queued:
                self._held_bytes += len(data)
                self._queue.append((block, data))
                if self._idle < len(self._queue) and self._threads < THREADS:
                    self._threads += 1
                    threading.Thread(target=self._run, name="cache shares", daemon=True).start()
                self._changed.notify_all()
        if not queued:
            self._counters.add("cache_shared_dropped")

    def close(self) -> None:
        """Drop what is queued, and end the threads."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the queue is empty; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held_bytes, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._queue or self._closed)
                self._idle -= 1
                if not self._queue:
                    return
                block, data = self._queue.popleft()
            try:
                self._send(block, data)
            except Interrupted:
                pass  # the mount is ending
            except S3Error as error:
                self._counters.add("cache_shared_errors")
                self._health.failed(0, why=str(error) or type(error).__name__)
            except Exception:
                log.exception("a block could not be sent to the shared cache")
            size = len(data)
            del data  # before the queue has room: it holds memory
            with self._changed:
                self._held_bytes -= size
                self._changed.notify_all()

    def _send(self, block: SharedBlock, data: memoryview) -> None:
        """Send a block. Raises S3Error, or Interrupted."""
        put(self._client, self._retry_policy, block.key, block.body(data))
        self._counters.add("cache_shared_bytes_written", len(data))
        self._health.succeeded()


def put(client: ObjectClient, retry_policy: RetryPolicy, key: bytes, body: Body) -> None:
    """Put an object, without a checksum if the store knows none. Raises S3Error, or Interrupted."""
    without = Body(body.pieces, body.size_bytes)
    request = Fallback(
        client.capabilities,
        "write",
        Terms(checksums=body.checksum is not None),
        lambda terms: client.put_object(key, body if terms.checksums else without, PutOptions()),
    )
    retry_policy.ask(request.start, again=request.applies).answer()
