"""Send blocks to the shared cache behind the readers' backs.

A few threads send what was offered, each one block at a time. If the queue is full, blocks are
dropped: the next reader fetches them from the mounted bucket again, and offers them again.
"""

from dataclasses import dataclass

from mountpoint.cache.blocks._format import crc32c_of, is_block, trailer_bytes, trailer_of
from mountpoint.cache.directory import FORMAT, NAME
from mountpoint.cache.health import Health
from mountpoint.cache.identity import Identity
from mountpoint.cache.shared.known import Known, State
from mountpoint.cache.write_queue import WriteQueue
from mountpoint.errors import Interrupted, S3Error
from mountpoint.metrics.counters import Counters
from mountpoint.s3.client import Body, Checksum, ObjectClient, PutOptions
from mountpoint.s3.fallback import Fallback, Terms
from mountpoint.s3.retry import RetryPolicy
from mountpoint.s3.wire.checksum import CRCS, encoded

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


@dataclass(frozen=True, slots=True)
class FilledBlock:
    """A block and its bytes."""

    block: SharedBlock
    data: memoryview


class SharedFiller:
    """Sends blocks, of which at most `queue_bytes` wait."""

    def __init__(
        self,
        client: ObjectClient,
        health: Health,
        counters: Counters,
        retry_policy: RetryPolicy,
        known: Known,
        *,
        queue_bytes: int,
    ) -> None:
        # dependencies
        self._client = client
        self._health = health
        self._known = known
        self._counters = counters
        self._retry_policy = retry_policy
        self._queue: WriteQueue[FilledBlock] = WriteQueue(
            self._fill, name="cache shares", threads=THREADS, max_bytes=queue_bytes
        )

    def offer(self, block: SharedBlock, data: memoryview) -> None:
        """Queue a block, or drop it if there is no room, or the bucket fails."""
        self._known.note(block.key, State.QUEUED)
        if not (self._health.usable and self._queue.offer(FilledBlock(block, data))):
            self._known.note(block.key, None)
            self._counters.add("cache_shared_dropped")

    def close(self) -> None:
        """See WriteQueue."""
        self._queue.close()

    @property
    def held_bytes(self) -> int:
        """See WriteQueue."""
        return self._queue.held_bytes

    def wait(self, timeout_s: float) -> bool:
        """See WriteQueue."""
        return self._queue.wait(timeout_s)

    def _fill(self, filled: FilledBlock) -> None:
        """Send a block."""
        block, data = filled.block, filled.data
        try:
            put(self._client, self._retry_policy, block.key, block.body(data))
        except Interrupted:  # the mount is ending
            return
        except S3Error as error:
            self._known.note(block.key, None)
            self._counters.add("cache_shared_errors")
            self._health.failed(0, why=str(error) or type(error).__name__)
            return
        self._known.note(block.key, State.THERE)
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
