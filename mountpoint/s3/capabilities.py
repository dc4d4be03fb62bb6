"""What an endpoint that is not AWS's can do of what reading relies on: asked at mount, by reading.

Two LISTs and two GETs of a byte, one try each, the last three at the same time; not for long:

* The page that mounting has listed shows whether it is one of ListObjectsV2, and encoded.
* A LIST that is to start after the first key must not begin with that key.
* A GET with the ETag that no object has must be 412; one that is refused for its
  x-amz-checksum-mode says so. In an empty bucket it is of a key that is not there.
* A GET with the ETag that the object is listed with must not be 412, as it is where a store, or a
  proxy, has weak ETags only: If-Match compares strongly.

What gives no answer is taken for S3's own way. What a store makes of checksums and conditions of
writes is not asked here, because that would write: the first refusal tells (`writing.uploads`).
"""

import functools
import threading
import time

import structlog

from mountpoint.errors import ChecksumsNotOffered, PreconditionFailed, S3Error
from mountpoint.s3.client import (
    Capabilities,
    ListPage,
    ObjectClient,
    ObjectInfo,
)
from mountpoint.s3.retry import RetryPolicy

log = structlog.get_logger(__name__)

#: How long the first LIST may take, and again the other questions together.
TRY_S = 3.0
#: An MD5 that nobody knows a text of: no object's.
NO_ETAG = f'"{"0" * 32}"'
#: Asked for in an empty bucket.
NO_KEY = b".mount-s3-probe"


def find_abilities(
    client: ObjectClient, prefix: bytes, page: ListPage, stopping: threading.Event
) -> Capabilities:
    """Return what the endpoint can do, where `page` is how it lists what is below `prefix`.

    Logs one line for each thing that S3 can and it cannot.
    """
    retry_policy = RetryPolicy(try_s=TRY_S, total_s=TRY_S, stopping=stopping, most_tries=1)
    objects = _some_objects(client, prefix, retry_policy) if page.objects or page.prefixes else []
    first = objects[0].key if objects and not page.by_marker else None
    filled = next((each for each in objects if each.size_bytes), None)
    key = prefix + NO_KEY if filled is None else filled.key
    until_s = time.monotonic() + TRY_S
    other = _Answer(client, key, NO_ETAG)
    own = _Answer(client, key, filled.etag) if filled is not None and filled.etag else None
    starts_after = first is None or _starts_after(client, prefix, first, retry_policy)
    for answer in (other, own):
        if answer is not None:
            answer.wait(until_s)
    capabilities = Capabilities(
        pages_by_token=not page.by_marker,
        starts_after=starts_after,
        matches=other.info is None and not (own and isinstance(own.error, PreconditionFailed)),
        takes_checksum_mode=not isinstance(other.error, ChecksumsNotOffered),
    )
    _tell(capabilities, page)
    return capabilities


def _some_objects(
    client: ObjectClient, prefix: bytes, retry_policy: RetryPolicy
) -> list[ObjectInfo]:
    start = functools.partial(client.list, prefix, max_keys=2, flat=True)
    try:
        return retry_policy.ask(start).answer().objects
    except S3Error:
        return []


def _starts_after(
    client: ObjectClient, prefix: bytes, key: bytes, retry_policy: RetryPolicy
) -> bool:
    start = functools.partial(client.list, prefix, start_after=key, max_keys=1, flat=True)
    try:
        rest = retry_policy.ask(start).answer().objects
    except S3Error:
        return True
    # Not compared with the key: stores that keep folders have another order.
    return not rest or rest[0].key != key


def _tell(capabilities: Capabilities, page: ListPage) -> None:
    if not capabilities.pages_by_token:
        log.info("the store knows no ListObjectsV2: it is listed by markers (ListObjects)")
    if not page.encoded:
        log.info("the store does not encode keys: those with control characters are not listed")
    if not capabilities.starts_after:
        log.info("the store ignores start-after: names are looked up one by one")
    if not capabilities.matches:
        log.info("If-Match does not hold at this store: its answers' ETags are compared, as always")
    if not capabilities.takes_checksum_mode:
        log.info("the store refuses x-amz-checksum-mode: what is read is not verified")


class _Answer:
    """A GET of one byte with If-Match, and the answer to it."""

    def __init__(self, client: ObjectClient, key: bytes, etag: str) -> None:
        self.info: ObjectInfo | None = None  # of the object that came
        self.error: Exception | None = None
        self._came = threading.Event()
        self._transfer = client.get(key, 0, 1, self, if_match=etag)

    def wait(self, until_s: float) -> None:
        """Wait for it; not after that time by the monotonic clock."""
        if not self._came.wait(max(until_s - time.monotonic(), 0.0)):
            self._transfer.cancel()

    def on_headers(self, info: ObjectInfo) -> None:
        """See BodySink."""
        self.info = info

    def on_body(self, chunk: bytes, offset: int) -> None:
        """See BodySink."""

    def finish(self, error: Exception | None) -> None:
        """See BodySink."""
        self.error = error
        self._came.set()
