"""Copy and move objects within the bucket, on the server; check each copy before the source goes.

Up to 5 GiB a copy is one CopyObject, above that an `Upload` whose parts the server copies. Both
copy exactly one version. Content type, metadata, storage class and S3's stored headers go along;
encryption follows the mount or the bucket. CopyObject copies tags, parts do not. ACLs, retention,
legal holds and website redirects are never copied, and a copy has its own time
(https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html).

Order: first the copy is made. Then HEAD has to show it with the source's size and the ETag of the
answer. Only then is the source deleted, if it is still the version that was copied. So at each
moment one of the two keys has the bytes. A failure in between leaves both.

Conditions: some stores silently ignore If-None-Match of a CopyObject, or If-Match of a DELETE.
So a HEAD checks first. Where the store knows conditions, they close the window between the two
requests; where it does not, a write by another client in that window is lost.

Lost answers (`s3/lost_answers`): an object with the source's size and ETag, or a checksum of the
source, counts as ours. A copy of an object that was uploaded in parts has another ETag; without
checksums it is taken for somebody else's. That is an error, and both objects stay.

Directory buckets have RenameObject, which replaces all this.

Time limits: each request has the limit of `RetryPolicy`, and one second more for each 8 MiB that it
copies. Do not call this with a lock held.
"""

import functools
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace

import structlog

from mountpoint.config import MAX_PART_BYTES, WriteConfig
from mountpoint.errors import (
    AlreadyExists,
    BadAnswer,
    Interrupted,
    NotFound,
    NotOffered,
    PreconditionFailed,
    S3Error,
    restated,
)
from mountpoint.s3.client import (
    ALWAYS,
    NEW,
    Condition,
    ListPage,
    ObjectClient,
    ObjectInfo,
    PutOptions,
    Stored,
    Written,
    same_etag,
)
from mountpoint.s3.content_types import after_rename, by_name
from mountpoint.s3.fallback import Fallback, Terms
from mountpoint.s3.lost_answers import is_copy
from mountpoint.s3.retry import RetryingCall, RetryPolicy
from mountpoint.transfer.parallel import Result, for_each
from mountpoint.upload.copy_probe import CopyTrial
from mountpoint.upload.multipart import SLOWEST_COPY_BYTES_PER_S
from mountpoint.upload.uploads import Uploads

log = structlog.get_logger(__name__)

#: CopyObject's limit: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_COPY_BYTES = MAX_PART_BYTES
#: Objects moved at a time. Each takes five requests in sequence: so 300 objects a second.
MOVES = 32
#: How often the log shows the progress of a large directory, in seconds.
PROGRESS_S = 5.0


class Copies:
    """Copies and moves the objects of a mount. Thread-safe; its callers wait.

    Objects above `max_copy_bytes` are copied in parts.
    """

    def __init__(
        self,
        client: ObjectClient,
        config: WriteConfig,
        uploads: Uploads,
        retry_policy: RetryPolicy,
        *,
        max_copy_bytes: int = MAX_COPY_BYTES,
    ) -> None:
        # dependencies
        self._client = client
        self._uploads = uploads
        self._retry_policy = retry_policy
        self._trial = CopyTrial(client, uploads, retry_policy)
        # constants
        self.renames = client.is_directory  # with RenameObject, so without a copy
        self._config = config
        self._max_copy_bytes = max_copy_bytes

    def copy(
        self, source: ObjectInfo, key: bytes, *, condition: Condition = ALWAYS, look: bool = True
    ) -> ObjectInfo:
        """Copy this version to `key`; return the copy, once HEAD has shown it.

        `look` False: the caller knows that the condition is met. Raises AlreadyExists or
        PreconditionFailed when it is not, PreconditionFailed or NotFound when the source is no
        longer that version, and errors that retries did not help.
        """
        etag = self._copy(source, key, condition, look=look)
        return self._confirmed(source, key, etag)

    def options_of(self, source: ObjectInfo) -> PutOptions:
        """Return the options for an object that has, or begins with, this version's bytes.

        Raises PreconditionFailed or NotFound when the object is no longer that version.
        """
        stored = self._ask_stored(source.key)
        if not same_etag(stored.info.etag, source.etag):
            raise PreconditionFailed(f"{shown(source.key)} has changed in the meantime")
        if stored.tags:
            log.warning("copies of large objects lose their tags", key=source.key)
        options = self._uploads.encrypted(stored.options)
        checksum = self._config.checksum
        if checksum is not None and not self._trial.takes_checksums(source, checksum):
            checksum = None
        return replace(options, checksum=checksum)

    def move(
        self, source: ObjectInfo, key: bytes, *, condition: Condition = ALWAYS, look: bool = True
    ) -> ObjectInfo:
        """Copy this version to `key`, then delete it; return the copy.

        Raises what `copy` raises, with the source untouched. If the source has changed in the
        meantime, or cannot be deleted, the copy stays too and the error says so.
        """
        if source.key == key:
            raise ValueError("an object cannot be moved to its own name")
        if self.renames:
            return self._rename(source, key, condition)
        etag = self._copy(source, key, condition, look=look)
        there = self._ask_head(source.key)  # sent while the copy is confirmed
        copied = self._confirmed(source, key, etag)
        try:
            self._delete(source, there)
        except S3Error as error:
            raise explained(
                error,
                f"{shown(source.key)} was copied to {shown(key)} but could not be deleted: "
                f"both exist ({error})",
            ) from error
        return copied

    def _rename(self, source: ObjectInfo, key: bytes, condition: Condition) -> ObjectInfo:
        """Let a directory bucket rename an object; return the renamed object."""
        start = functools.partial(
            self._client.rename_object,
            source.key,
            key,
            source_etag=source.etag,
            condition=condition,
            token=uuid.uuid4().hex,  # one for all tries: none repeats the rename
        )
        self._retry_policy.ask(start).answer()
        there = self._head(key)
        if there is None or there.size_bytes != source.size_bytes:
            raise BadAnswer(
                f"{shown(source.key)} was renamed to {shown(key)}, but that key does not exist"
            )
        return there

    def move_all(
        self,
        prefix: bytes,
        new_prefix: bytes,
        *,
        moved: Callable[[ObjectInfo, ObjectInfo], None] = lambda source, copy: None,
    ) -> int:
        """Move all objects whose keys begin with `prefix`; return their number.

        Overwrites only markers of directories, with others. `moved` is called with each object
        before and after the move, on several threads. Ends at the first failure: then some objects
        have been moved, the failed one may be in both places, and each is in at least one. The
        error says how many, which one and why. Raises ValueError when one prefix begins with the
        other.
        """
        if prefix.startswith(new_prefix) or new_prefix.startswith(prefix):
            raise ValueError("a directory cannot be moved into itself, or onto its parent")
        there = self._page(new_prefix, None, 1)
        look = bool(there.objects or there.skipped)
        found = 0
        told_s = time.monotonic()

        def sources() -> Iterator[ObjectInfo]:
            nonlocal found
            token: str | None = None
            while True:
                page = self._page(prefix, token)
                found += len(page.objects)
                yield from page.objects
                if page.skipped:
                    raise BadAnswer(f"{page.skipped} keys of the listing are invalid")
                token = page.next_token
                if token is None:
                    return

        def move(source: ObjectInfo) -> None:
            key = new_prefix + source.key[len(prefix) :]
            # SeaweedFS has the marker of each directory in which a file is.
            condition = ALWAYS if is_marker(source) else NEW
            done = self._move_listed(source, key, condition, look=look)
            if done is not None:
                moved(*done)

        def progress(moved: int) -> None:
            nonlocal told_s
            if time.monotonic() - told_s >= PROGRESS_S:
                told_s = time.monotonic()
                log.info("moving", prefix=prefix, to=new_prefix, moved=moved, found=found)

        stopping = self._retry_policy.stopping
        result = for_each(move, sources(), workers=MOVES, stopping=stopping, progress=progress)
        self._check_all(result, prefix, new_prefix)
        return result.done

    def _move_listed(
        self, source: ObjectInfo, key: bytes, condition: Condition, *, look: bool
    ) -> tuple[ObjectInfo, ObjectInfo] | None:
        """Move an object of a listing; return it before and after, or None if it is gone."""
        if not source.etag:  # some stores list an object without it while it is being written
            there = self._head(source.key)
            if there is None:
                return None
            source = there
        try:
            return source, self.move(source, key, condition=condition, look=look)
        except NotFound:
            if self._head(source.key) is not None:
                raise
            return None

    def _check_all(self, result: Result[ObjectInfo], prefix: bytes, new_prefix: bytes) -> None:
        """Raise an error that says how many objects have been moved, unless all have."""
        if not result.failed and not result.stopped:
            return
        text = f"{result.done} objects of {shown(prefix)} have been moved to {shown(new_prefix)}; "
        if not result.failed:
            raise Interrupted(text + "the mount is ending")
        source, error = result.failed[0]
        others = f" (and {len(result.failed) - 1} others)" if len(result.failed) > 1 else ""
        what = "listing the others" if source is None else shown(source.key)
        text += f"{what}{others} failed: {error}"
        if isinstance(error, S3Error):
            raise explained(error, text) from error
        raise Interrupted(text) if isinstance(error, Interrupted) else error

    # --- the copy ---

    def _copy(self, source: ObjectInfo, key: bytes, condition: Condition, *, look: bool) -> str:
        """Copy this version; return the copy's ETag."""
        if look:
            self._look(key, condition)
        try:
            if source.size_bytes > self._max_copy_bytes:
                return self._copy_in_parts(source, key, condition)
            return self._copy_at_once(source, key, condition)
        except NotFound:
            self._look(key, condition)  # the 404 may be about the object to replace
            if not is_marker(source):
                raise
            return self._make_again(source, key, condition)

    def _make_again(self, source: ObjectInfo, key: bytes, condition: Condition) -> str:
        """Create a marker of a directory like `source`: SeaweedFS copies none. Return its ETag.

        Raises NotFound if the source is gone.
        """
        upload = self._uploads.upload(key, condition=condition, options=self.options_of(source))
        try:
            return upload.finish().etag
        finally:
            upload.abort()  # does nothing after `finish`

    def _look(self, key: bytes, condition: Condition) -> None:
        """Check the condition with a HEAD before the copy."""
        if condition == ALWAYS:
            return
        there = self._head(key)
        if condition.absent and there is not None:
            raise AlreadyExists(f"{shown(key)} already exists")
        if condition.etag is None:
            return
        if there is None:
            raise PreconditionFailed(f"{shown(key)}, the target of the rename, no longer exists")
        if not same_etag(there.etag, condition.etag):
            raise PreconditionFailed(f"{shown(key)}, the target of the rename, has changed")

    def _copy_at_once(self, source: ObjectInfo, key: bytes, condition: Condition) -> str:
        """Copy the object in one request; return the copy's ETag."""
        options = self._retyped(source, key)
        keep_metadata = options is None
        if options is None:
            storage_class = None if source.storage_class == "STANDARD" else source.storage_class
            options = PutOptions(storage_class=storage_class)
        options = self._uploads.encrypted(options)

        def send(terms: Terms) -> "Future[Written]":
            return self._client.copy_object(
                source.key,
                key,
                source_etag=source.etag,
                options=options,
                keep_metadata=keep_metadata,
                condition=terms.condition,
            )

        fallback = Fallback(self._client.capabilities, "copy", Terms(condition), send)
        more_s = source.size_bytes / SLOWEST_COPY_BYTES_PER_S
        call = self._retry_policy.ask(fallback.start, more_s=more_s, again=fallback.applies)
        try:
            return call.answer(functools.partial(self._made, source, key)).etag
        except PreconditionFailed as error:
            if type(error) is not PreconditionFailed:
                raise
            self._look(key, condition)  # the 412 may be about either condition
            raise explained(error, f"{shown(source.key)} has changed in the meantime") from error

    def _retyped(self, source: ObjectInfo, key: bytes) -> PutOptions | None:
        """Return options with the content type of the new name, or None if it does not change."""
        if not self._config.content_types or by_name(source.key) == by_name(key):
            return None
        options = self._ask_stored(source.key).options
        content_type = after_rename(options.content_type, source.key, key)
        if content_type == options.content_type:
            return None
        return replace(options, content_type=content_type)

    def _made(self, source: ObjectInfo, key: bytes) -> Written | None:
        """Return the object at `key` if it equals a copy of `source`, else None."""
        try:
            ours = self._ask_stored(source.key)
            there = self._ask_stored(key)
        except S3Error:
            return None
        is_ours = same_etag(ours.info.etag, source.etag) and is_copy(there, ours)
        return Written(there.info.etag) if is_ours else None

    def _copy_in_parts(self, source: ObjectInfo, key: bytes, condition: Condition) -> str:
        """Let the server copy the object part by part; return the copy's ETag."""
        options = self.options_of(source)
        if self._config.content_types:
            content_type = after_rename(options.content_type, source.key, key)
            options = replace(options, content_type=content_type)
        size_bytes = source.size_bytes
        upload = self._uploads.upload(
            key, condition=condition, options=options, known_bytes=size_bytes, only_copied=True
        )
        try:
            upload.copy(source, 0, size_bytes, last=True)
            return upload.finish().etag
        finally:
            upload.abort()  # does nothing after `finish`

    def _confirmed(self, source: ObjectInfo, key: bytes, etag: str) -> ObjectInfo:
        """Return the copy as HEAD shows it. Raises if it is not the object that was copied."""
        there = self._head(key)
        if there is None:
            raise BadAnswer(f"{shown(key)} was copied, but does not exist")
        if not same_etag(there.etag, etag):
            raise PreconditionFailed(f"{shown(key)} was copied, but was then replaced")
        if there.size_bytes != source.size_bytes:
            raise BadAnswer(
                f"{shown(key)} was copied with {there.size_bytes} of {source.size_bytes} bytes"
            )
        return there

    # --- the source ---

    def _delete(self, source: ObjectInfo, asked: RetryingCall[ObjectInfo]) -> None:
        """Delete this version, if the HEAD `asked` still shows it. A missing object is no error."""
        try:
            there = asked.answer()
        except NotFound:
            return
        if not same_etag(there.etag, source.etag):
            raise PreconditionFailed("it has changed in the meantime")

        def send(terms: Terms) -> "Future[None]":
            return self._client.delete_object(source.key, etag=terms.condition.etag)

        terms = Terms(Condition(etag=source.etag))
        fallback = Fallback(self._client.capabilities, "delete", terms, send)
        try:
            self._retry_policy.ask(fallback.start).answer()
        except NotFound:
            pass
        except NotOffered as error:
            if not fallback.applies(error):
                raise
            self._delete(source, self._ask_head(source.key))  # the first HEAD is old by now
        except S3Error:
            # Deleted by an earlier try or another client: some stores answer 412 if it is missing.
            if self._head(source.key) is not None:
                raise

    # --- requests ---

    def _page(self, prefix: bytes, token: str | None, max_keys: int = 1000) -> ListPage:
        start = functools.partial(
            self._client.list, prefix, token=token, max_keys=max_keys, flat=True
        )
        return self._retry_policy.ask(start).answer()

    def _ask_head(self, key: bytes) -> RetryingCall[ObjectInfo]:
        return self._retry_policy.ask(functools.partial(self._client.head, key))

    def _head(self, key: bytes) -> ObjectInfo | None:
        try:
            return self._ask_head(key).answer()
        except NotFound:
            return None

    def _ask_stored(self, key: bytes) -> Stored:
        return self._retry_policy.ask(
            functools.partial(self._client.head_with_checksums, key)
        ).answer()


def is_marker(info: ObjectInfo) -> bool:
    """Whether an object is the marker of a directory."""
    return info.key.endswith(b"/") and info.size_bytes == 0


def shown(key: bytes) -> str:
    """Return a key as messages show it."""
    return repr(key.decode("utf-8", "backslashreplace"))


def explained(error: S3Error, text: str) -> S3Error:
    """Return the same error with another text."""
    return restated(error, type(error), text, error.hint)
