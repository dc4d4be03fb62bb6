"""Find out at mount which S3 features that reads rely on a store other than AWS lacks.

The probe sends two LISTs and two GETs of one byte, each once; the last three run in parallel:

* The page from mounting shows whether it is a ListObjectsV2 page and whether keys are encoded.
* A LIST that starts after the first key must not return that key.
* A GET with an ETag that no object has must fail with 412. A store that rejects
  x-amz-checksum-mode says so in this answer. In an empty bucket this GET uses a missing key.
* A GET with the listed ETag must not fail with 412. It does if a store or proxy sends only weak
  ETags, because If-Match compares strongly.

A question without an answer counts as supported. What writes need is not probed, because that
would write; the first refusal shows it (`capabilities`).
"""

import functools
import threading
import time

import structlog

from mountpoint.errors import ChecksumsNotOffered, PreconditionFailed, S3Error
from mountpoint.s3.capabilities import Capabilities
from mountpoint.s3.client import ListPage, ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy

log = structlog.get_logger(__name__)

#: Seconds for the first LIST, and again for the other three requests together.
TRY_S = 3.0
#: No known text has this MD5, so no object has this ETag.
NO_ETAG = f'"{"0" * 32}"'
#: The key of the GET in an empty bucket.
NO_KEY = b".mount-s3-probe"


def probe(
    client: ObjectClient,
    prefix: bytes,
    page: ListPage,
    stopping: threading.Event,
    capabilities: Capabilities,
) -> None:
    """Set the features that reads need in `capabilities`; `page` is the listing below `prefix`.

    Logs one line for each feature that the store lacks.
    """
    retry_policy = RetryPolicy(try_s=TRY_S, total_s=TRY_S, stopping=stopping, max_tries=1)
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
    own_refused = own is not None and isinstance(own.error, PreconditionFailed)
    capabilities.pages_by_token = not page.by_marker
    capabilities.starts_after = starts_after
    capabilities.matches = other.info is None and not own_refused
    capabilities.takes_checksum_mode = not isinstance(other.error, ChecksumsNotOffered)
    _tell(capabilities, page)


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
    # Do not compare the order of keys: stores with real folders sort them differently.
    return not rest or rest[0].key != key


def _tell(capabilities: Capabilities, page: ListPage) -> None:
    if not capabilities.pages_by_token:
        log.info(
            "the store does not support ListObjectsV2: the mount lists with markers (ListObjects)"
        )
    if not page.encoded:
        log.info("the store does not encode keys: listings omit keys with control characters")
    if not capabilities.starts_after:
        log.info("the store ignores start-after: the mount looks names up one by one")
    if not capabilities.matches:
        log.info(
            "the store ignores If-Match: the mount compares the ETags of its answers, as always"
        )
    if not capabilities.takes_checksum_mode:
        log.info("the store refuses x-amz-checksum-mode: reads are not verified")


class _Answer:
    """A GET of one byte with If-Match, and its answer."""

    def __init__(self, client: ObjectClient, key: bytes, etag: str) -> None:
        self.info: ObjectInfo | None = None  # of the object in the answer
        self.error: Exception | None = None
        self._came = threading.Event()
        self._transfer = client.get(ObjectInfo(key, 0, 0, etag), 0, 1, self)

    def wait(self, until_s: float) -> None:
        """Wait for the answer until `until_s` on the monotonic clock."""
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
