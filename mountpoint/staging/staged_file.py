"""One file that is written in any order: on the local disk, until it is uploaded.

All handles of a file share one `StagedFile`. What is written stays local (`content`); `sync` makes
an object of it, of which S3 copies what has not changed (`upload_plan`). That object is then the
base, and writing may go on.

While a file is uploaded, removed or moved (`_busy`) who would change it waits, so that an object is
the file as it was at one moment. Reading goes on. That wait ends with the upload, whose own waits
are bounded, or with the mount.

When an upload fails, everything stays as it was, and the next `sync` tries again. The local file
and its description (`journal`) stay until one succeeds, also beyond the end of the mount. Before it
is changed again it is set aside (`aside`), so that `revert` can have it back.

Not known here: inodes, handles, whether an object may be replaced.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

from mountpoint.config import MIB
from mountpoint.errors import (
    BadAnswer,
    BucketNotFound,
    NotFound,
    OperationError,
    PreconditionFailed,
    S3Error,
    StagingFull,
)
from mountpoint.s3.client import ObjectInfo
from mountpoint.staging import journal
from mountpoint.staging import recovery as leftovers
from mountpoint.staging.area import Reclaimable, StagingArea
from mountpoint.staging.aside import Aside
from mountpoint.staging.content import Content, Fetch
from mountpoint.staging.journal import Journal, Subject
from mountpoint.staging.upload_plan import segments

log = structlog.get_logger(__name__)

#: What is uploaded is read in pieces of this size.
PIECE_BYTES = MIB
#: How long what is missing of a file that could not be uploaded is fetched, to keep it whole.
FILL_S = 10.0
#: How long the end of the mount waits for an upload that has been given up.
END_S = 5.0
#: How often a writer has room made that others then take.
MOST_TRIES = 16


class Sink(Protocol):
    """The upload of one object (`writing.upload.Upload`).

    `equal_bytes` is the size of all its parts but the last, where they have to have one size.
    """

    equal_bytes: int | None

    def write(self, offset: int, data: bytes) -> int:
        """Append bytes, at the offset that has been reached."""

    def copy(self, source: ObjectInfo, start: int, stop: int, *, last: bool = False) -> None:
        """Append a range of an object's version; `last`: nothing follows it."""

    def finish(self) -> ObjectInfo:
        """Complete it."""

    def abort(self, until_s: float | None = None) -> None:
        """Give it up."""


class StagedFile(Reclaimable):
    """The file that is to become the object `key`; it begins as `base`, or new and empty (None).

    `fetch` returns a range of a version, and raises PreconditionFailed when there is another one.
    `begin` starts an upload that replaces `base`, or creates the object. `part_bytes` is the size
    of its first parts. Thread-safe; `_changed` guards everything and is never held while waiting
    for S3. Everything may raise StagingFull, StagingFault and TooLarge, for the local file.
    """

    def __init__(
        self,
        area: StagingArea,
        key: bytes,
        base: ObjectInfo | None,
        *,
        fetch: Fetch,
        begin: Callable[[bytes, ObjectInfo | None], Sink],
        part_bytes: int,
        stopping: threading.Event,
    ) -> None:
        # dependencies
        self._area = area
        self._begin = begin
        # constants
        self._part_bytes = part_bytes
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._content = Content(area, base, fetch, self._changed, stopping)
        self._key = key
        self._journal: Journal | None = None  # there is one when it has changed, until `unlink`
        self._mtime_ns = time.time_ns() if base is None else base.mtime_ns
        self._busy = False  # being uploaded, removed or moved: nobody may change it
        self._failed = False  # the last upload; then nothing local is given back
        self._aside: Aside | None = None  # what it was then, if it has changed since
        self._unlinked = False
        area.add(self)

    # --- what it is ---

    @property
    def key(self) -> bytes:
        """The key of the object that it is to become."""
        return self._key

    @property
    def base(self) -> ObjectInfo | None:
        """The version that it began as, or became last."""
        return self._content.base

    @property
    def size_bytes(self) -> int:
        """The size of the file now."""
        return self._content.extents.size_bytes

    @property
    def mtime_ns(self) -> int:
        """When it was last changed; once it is uploaded, what S3 says."""
        return self._mtime_ns

    @property
    def dirty(self) -> bool:
        """Whether S3 does not have it as it is now, and is to have it; or it is still kept."""
        changed = self._content.extents.dirty or self._aside is not None
        return changed and not self._unlinked

    @property
    def failed(self) -> bool:
        """Whether the last upload has failed, so that it is kept."""
        return self._failed

    @property
    def unlinked(self) -> bool:
        """Whether it has been removed, and is only open still."""
        return self._unlinked

    @property
    def used_s(self) -> float:
        """See Tenant."""
        return self._content.used_s

    # --- reading and changing ---

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file.

        Raises what `fetch` does: PreconditionFailed when the base has been replaced by others.
        """
        return self._content.read(offset, size)

    def write(self, offset: int, data: bytes) -> int:
        """Write at any offset; return how many bytes. Fetches nothing.

        Raises StagingFull when there is no room and none can be made, Interrupted when the
        mount goes away while this waits for an upload.
        """
        if not data:
            return 0

        def write() -> int:
            need_bytes = self._begin_change(self.size_bytes) or self._content.write(offset, data)
            if not need_bytes:
                self._note_write(offset, offset + len(data))
            return need_bytes

        self._with_room(write)
        return len(data)

    def truncate(self, size_bytes: int) -> None:
        """Cut the file off, or continue it with zeros. Fetches nothing. Raises as `write`."""

        def truncate() -> int:
            if size_bytes == self.size_bytes:
                self._content.check_open()
                return 0
            need_bytes = self._begin_change(min(size_bytes, self.size_bytes))
            if need_bytes:
                return need_bytes
            try:
                if self._journal is not None:
                    self._journal.truncates(size_bytes)
                self._content.truncate(size_bytes)
            except OperationError:
                self._write_journal()
                raise
            return 0

        self._with_room(truncate)

    def _with_room(self, change: Callable[[], int]) -> None:
        """Have a change made, with the lock held; make the room that it returns."""
        for _ in range(MOST_TRIES):
            with self._changed:
                need_bytes = change()
            if not need_bytes:
                return
            if not self._area.reclaim(need_bytes):
                break
        raise StagingFull(
            f"{self._area.used_bytes // MIB} MiB are staged: there is no room for more"
        )

    def _begin_change(self, stop: int) -> int:
        """Wait until the file may be changed, and have it noted that it is.

        Returns how many bytes of room that takes, where there are not so many. Of what is kept
        only the bytes up to `stop` are needed any more.
        """
        self._wait_idle()
        self._content.check_open()
        if self._failed and self._aside is None and not self._unlinked:
            need_bytes = self._set_aside(stop)
            if need_bytes:
                return need_bytes
        if self._journal is None:
            self._write_journal()
        self._mtime_ns = time.time_ns()
        self._content.used_s = time.monotonic()
        return 0

    def _set_aside(self, stop: int) -> int:
        forked = self._content.fork(stop)
        if isinstance(forked, int):
            return forked
        assert self._journal is not None
        self._aside = Aside(*forked, self._journal, self._mtime_ns)
        self._journal = None
        try:
            self._write_journal()
        except OperationError:
            self._take_back(self._aside)
            raise
        return 0

    def _note_write(self, start: int, stop: int) -> None:
        if self._journal is not None:
            self._journal.wrote(start, stop)
            if self._journal.is_long(self._content.extents):
                self._write_journal()

    # --- uploading ---

    def sync(self, *, keep: bool = True) -> ObjectInfo | None:
        """Upload the file if it has changed; return the object. None if it has been removed.

        When this returns S3 has all that was written before it was called. Raises what the upload
        does, with a hint that says where the file is kept; calling it again tries again. Unless
        it is to `keep` it then, which is when `revert` should follow.
        """
        with self._alone():
            if not self.dirty:
                return None if self._unlinked else self.base
            info = self.base
            if self._content.extents.dirty:  # else what is kept has been undone since
                try:
                    info = self._upload()
                except BaseException as error:
                    if keep:
                        self._keep(error)
                    raise
            with self._changed:
                assert info is not None
                self._content.became(info)
                self._mtime_ns = info.mtime_ns
                self._failed = False
                if not self._content.closed:
                    self._forget()
            return info

    def _upload(self) -> ObjectInfo:
        base = self.base
        sink = self._begin(self._key, base)
        try:
            for segment in segments(self._content.extents, self._part_bytes, sink.equal_bytes):
                if segment.copied:
                    assert base is not None
                    last = segment.stop == self.size_bytes
                    sink.copy(base, segment.start, segment.stop, last=last)
                    continue
                start = segment.start
                while start < segment.stop:  # in pieces that begin where blocks do
                    stop = min(start - start % PIECE_BYTES + PIECE_BYTES, segment.stop)
                    sink.write(start, self._content.read(start, stop - start))
                    start = stop
            info = sink.finish()
        except BaseException:
            sink.abort()
            raise
        if info.size_bytes != self.size_bytes:
            raise BadAnswer(f"{self.size_bytes} bytes became {info.size_bytes}")
        return info

    def _keep(self, error: BaseException) -> None:
        """Make what could not be uploaded as complete as possible, and say where it is."""
        with self._changed:
            self._failed = True
        gone = PreconditionFailed | NotFound | BucketNotFound
        if isinstance(error, S3Error) and not error.retryable and not isinstance(error, gone):
            self._fill()
        with self._changed:
            if not self._content.closed:
                self._describe()
                self._drop_aside()
        where = f"what was written is kept in '{self._content.path}' (docs/staging.md)"
        if isinstance(error, OperationError) and where not in error.hint:
            error.hint = f"{error.hint}; {where}" if error.hint else where

    def _fill(self) -> None:
        """Fetch what is missing, as far as there are time and room."""
        until_s = time.monotonic() + FILL_S
        content = self._content
        try:
            for start, stop in content.missing(0, self.size_bytes):
                for first in range(start, stop, PIECE_BYTES):
                    last = min(first + PIECE_BYTES, stop)
                    content.read(first, last - first)
                    if time.monotonic() > until_s or content.missing(first, last):
                        return
        except OperationError as error:
            log.debug("what is missing cannot be fetched", key=self._key, reason=str(error))

    def revert(self) -> bool:
        """Take back what was changed since the last upload, whether that succeeded or failed.

        False, with nothing done, if there has been none.
        """
        with self._changed:
            self._wait_idle()
            self._content.check_open()
            if self._unlinked:
                return True
            if self._aside is not None:
                self._take_back(self._aside)
            elif not self._failed:
                if self.base is None:
                    return False
                self._content.reset()
                self._mtime_ns = self.base.mtime_ns
                self._forget()
            return True

    # --- removing, moving, the end ---

    def unlink(self, delete: Callable[[], None]) -> None:
        """Remove the file: `delete` removes the object, or puts another one in its place.

        From then on nothing is uploaded. It can be read and written until it is closed, as far as
        it is local. Until `delete` returns nothing is uploaded either; where it raises, everything
        is as before.
        """
        with self._alone():
            delete()
            with self._changed:
                self._unlinked = True
                self._forget()

    def move(self, key: bytes, copy: Callable[[ObjectInfo], ObjectInfo]) -> None:
        """Give the file another key: `copy` moves the base there, and returns what it is now.

        A file without a base, which has never been uploaded, only changes its key; `sync` first
        if it is to replace another one. Nothing becomes of a file that has been removed. Where
        `copy` raises, everything is as before.
        """
        with self._alone():
            base = self.base
            if self._unlinked:
                return
            moved = None if base is None else copy(base)
            with self._changed:
                self._key, self._content.base = key, moved
                if self._journal is not None:
                    self._note_move()

    def reclaim(self, size_bytes: int) -> int:
        """See Tenant."""
        with self._changed:
            if self._busy or self._failed or self._unlinked or self._content.closed:
                return 0
            return self._content.reclaim(size_bytes)

    def close(self) -> bool:
        """Remove the local file, after the last handle; False if it has to be uploaded before.

        Then it stays as it is: `sync` and close it again, or let the mount's end keep it.
        """
        with self._changed:
            self._wait_idle()
            if not self._content.closed:
                if self.dirty:
                    return False
                self._remove()
        return True

    def end(self) -> None:
        """See Tenant."""
        until_s = time.monotonic() + END_S
        with self._changed:
            while self._busy and time.monotonic() < until_s:
                self._changed.wait(until_s - time.monotonic())
            if self._content.closed:
                return
            if not self.dirty:
                self._remove()
                return
            if self._aside is not None:
                self._aside.keep(self._subject())
                self._aside = None
            self._failed = True  # it stays as it is
            self._describe()
            leftovers.say_kept(self._content.path, self._subject(), self._content.extents)
            if self._journal is not None:
                self._journal.close()
            self._content.close(keep=True)
            self._area.remove(self)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Have nobody change the file meanwhile."""
        with self._changed:
            self._wait_idle()
            self._content.check_open()
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    # --- with the lock held ---

    def _wait_idle(self) -> None:
        while self._busy:
            self._content.wait()

    def _subject(self) -> Subject:
        etag, size_bytes = (self.base.etag, self.base.size_bytes) if self.base else (None, None)
        return Subject(self._area.bucket, self._key, etag, size_bytes)

    def _write_journal(self) -> None:
        """Write the journal, for the first time or anew."""
        if self._unlinked:
            return
        journal_ = self._journal or Journal(self._content.path)
        journal_.rewrite(self._subject(), self._content.extents, fetched=self._failed)
        self._journal = journal_

    def _note_move(self) -> None:
        """Have the journal name the new key; it has been moved, also where that cannot be."""
        try:
            self._write_journal()
            if self._aside is not None:
                self._aside.describe(self._subject())
        except OperationError as error:
            log.warning(
                "the journal of a staged file still has its earlier key",
                path=str(self._content.path),
                key=self._key,
                reason=str(error),
            )

    def _describe(self) -> None:
        """Have the file found by others: on the disk, with a description."""
        try:
            self._write_journal()
            journal.write_description(self._content.path, self._subject(), self._content.extents)
            self._content.sync()
        except OperationError as error:
            log.warning("the description of a kept file cannot be written", reason=str(error))

    def _take_back(self, aside: Aside) -> None:
        """Go on with what was set aside."""
        self._aside = None
        if self._journal is not None:
            self._journal.remove()
        self._content.resume(aside.local, aside.extents)
        self._journal, self._mtime_ns = aside.journal, aside.mtime_ns

    def _drop_aside(self) -> None:
        if self._aside is not None:
            self._aside.remove()
            self._aside = None

    def _forget(self) -> None:
        """Note on the disk that nobody needs the local file, nor what was set aside."""
        if self._journal is not None:
            self._journal.remove()
            self._journal = None
        self._drop_aside()

    def _remove(self) -> None:
        self._forget()
        self._content.close(keep=False)
        self._area.remove(self)
