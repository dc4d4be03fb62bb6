"""Change the metadata of an object: the server copies the object onto itself.

S3 has no other way (https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html).
Content type, storage class, other metadata and the headers that S3 keeps stay as HEAD shows them;
encryption follows the mount or the bucket. The ETag stays too, unless the object was uploaded in
parts or KMS encrypts; `Last-Modified` always changes.

The copy reads exactly one version, and replaces that version only. Some stores do not know the
second condition: there, a write by another client at the same moment may be lost.

Lost answers (`s3/lost_answers`): if HEAD shows our change and the old size, the copy has succeeded,
or another one equal to ours.

Do not call this with a lock held.
"""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace

from mountpoint.copy.objects import MAX_COPY_BYTES
from mountpoint.errors import NotPermitted, PreconditionFailed, S3Error
from mountpoint.s3.client import (
    Condition,
    ObjectClient,
    ObjectInfo,
    PutOptions,
    Stored,
    Written,
    same_etag,
)
from mountpoint.s3.fallback import Fallback, Terms
from mountpoint.s3.lost_answers import is_changed
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.multipart import SLOWEST_COPY_BYTES_PER_S
from mountpoint.upload.uploads import Uploads

#: Returns the metadata that an object is to have in place of the given one, the same if it has it.
Change = Callable[[Mapping[str, str]], Mapping[str, str]]


class SelfCopies:
    """Changes the metadata of objects. Thread-safe; its callers wait."""

    def __init__(self, client: ObjectClient, uploads: Uploads, retry_policy: RetryPolicy) -> None:
        # dependencies
        self._client = client
        self._uploads = uploads
        self._retry_policy = retry_policy

    def change(self, source: ObjectInfo, change: Change) -> ObjectInfo:
        """Change the metadata of this version; return the new object.

        If nothing changes, only one HEAD is sent. Raises NotPermitted above 5 GiB,
        PreconditionFailed or NotFound when that version no longer exists, and errors that retries
        did not help.
        """
        check_size(source.size_bytes)
        stored = self._stored(source.key)
        if not same_etag(stored.info.etag, source.etag):
            raise PreconditionFailed("the object was replaced in the meantime")
        metadata = change(stored.options.metadata)
        if metadata == stored.options.metadata:
            return stored.info
        options = self._uploads.encrypted(replace(stored.options, metadata=metadata))
        written = self._copied(stored.info, options, change)
        if not written.date_ns:
            return self._stored(source.key).info
        etag = written.etag
        if same_etag(etag, stored.info.etag):
            etag = stored.info.etag  # in the spelling of HEAD and LIST
        elif not etag.startswith('"'):
            return self._stored(source.key).info
        return replace(stored.info, etag=etag, mtime_ns=written.date_ns, metadata=metadata)

    def _copied(self, source: ObjectInfo, options: PutOptions, change: Change) -> Written:
        """Let the server copy the object; the result of an earlier try has no date."""

        def send(terms: Terms) -> "Future[Written]":
            return self._client.copy_object(
                source.key,
                source.key,
                source_etag=source.etag,
                options=options,
                condition=terms.condition,
            )

        terms = Terms(Condition(etag=source.etag))
        fallback = Fallback(self._client.capabilities, "copy", terms, send)
        more_s = source.size_bytes / SLOWEST_COPY_BYTES_PER_S
        call = self._retry_policy.ask(fallback.start, more_s=more_s, again=fallback.applies)
        return call.answer(functools.partial(self._made, source, change))

    def _made(self, source: ObjectInfo, change: Change) -> Written | None:
        """Return the object if it has the changed metadata and the old size, else None."""
        try:
            there = self._stored(source.key)
        except S3Error:
            return None
        metadata = there.options.metadata
        is_ours = is_changed(there, change(metadata), source.size_bytes)
        return Written(there.info.etag) if is_ours else None

    def _stored(self, key: bytes) -> Stored:
        return self._retry_policy.ask(
            functools.partial(self._client.head_with_checksums, key)
        ).answer()


def check_size(size_bytes: int) -> None:
    """Raise NotPermitted for objects too large to copy in one request."""
    if size_bytes > MAX_COPY_BYTES:
        raise NotPermitted(
            "attributes of an object above 5 GiB cannot be changed: S3 copies 5 GiB at most",
            "mount with --attributes ignore to continue without them",
        )
