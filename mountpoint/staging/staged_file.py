"""One staged file: written in any order on the local disk, then uploaded.

All handles of a file share one `StagedFile`. Written bytes stay local (`content`). `sync` uploads
them as an object, of which the server copies the unchanged ranges (`upload_plan`). That object is
then the base, and writing may go on.

While a file is uploaded, removed or moved (`_busy`), writers wait, so that the object is the file
as it was at one moment. Reads go on. The wait ends with the upload, whose own waits are bounded, or
with the mount.

When an upload fails, everything stays as it was, and the next `sync` tries again. The local file
and its description (`journal`) stay until one succeeds, even after the end of the mount. Before the
file is changed again, it is set aside (`aside`), so that `revert` can restore it.

If the process dies, another one of the mount can go on with the file (`go_on`): from its `Progress`
and its journal, which the process has kept outside of itself.

Not known here: inodes, handles, and whether an object may be replaced.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from mountpoint.config import MIB
from mountpoint.errors import (
    BadAnswer,
    BucketNotFound,
    Interrupted,
    NotFound,
    OperationError,
    PreconditionFailed,
    S3Error,
    StagingFull,
)
from mountpoint.s3.client import ObjectInfo
from mountpoint.staging import journal, recovery
from mountpoint.staging.area import Reclaimable, StagingArea
from mountpoint.staging.aside import SetAsideFile
from mountpoint.staging.content import Content, Fetch
from mountpoint.staging.journal import Journal, Subject
from mountpoint.staging.sending import PIECE_BYTES, Sent, Sink, send
from mountpoint.staging.sparse_file import LocalFile

log = structlog.get_logger(__name__)

#: How long missing bytes are fetched to complete a file whose upload has failed, in seconds.
FILL_S = 10.0
#: How long the end of the mount waits for an upload that was given up, in seconds.
END_S = 5.0
#: How often a writer makes room again after others have taken it.
MAX_TRIES = 16

#: Whether the program that changes the file still waits.
Claim = Callable[[], bool]


class Progress(NamedTuple):
    """What a staged file has come to, as far as its journal does not say it.

    `data` is the name of its local file. `journaled`: the journal counts; else the base has all.
    `failed`: the last upload has failed. `sent`: what the last upload has sent, if it is not
    known to have succeeded.
    """

    data: str
    journaled: bool
    failed: bool
    sent: Sent | None


class StagedFile(Reclaimable):
    """A file that will become the object `key`. It begins as `base`, or new and empty (None).

    `fetch` returns a range of a version, and raises PreconditionFailed when that is replaced.
    `begin` starts an upload that replaces `base`, or creates the object. `part_bytes` is the size
    of its first parts. `on_progress` is called, with the lock held, when `progress`, `key` or
    `base` are about to count on the disk. Thread-safe; `_changed` guards everything and is never
    held while waiting for S3. All methods may raise StagingFull, StagingFault and TooLarge, for the
    local file.
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
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        # dependencies
        self._area = area
        self._fetch = fetch
        self._begin = begin
        self._on_progress = on_progress
        # constants
        self._part_bytes = part_bytes
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._content = Content(area, base, fetch, self._changed, stopping)
        self._key = key
        self._journal: Journal | None = None  # from the first change on, until `unlink`
        self._journaled = False  # whether the journal on the disk, if any, counts
        self._mtime_ns = time.time_ns() if base is None else base.mtime_ns
        self._busy = False  # being uploaded, removed or moved: writers wait
        self._failed = False  # the last upload has failed; local bytes are then not given back
        self._aside: SetAsideFile | None = None  # the file as it was then, if it has changed since
        self._unlinked = False
        self._sent: Sent | None = None  # by the last upload, until it has succeeded
        self._newest: Callable[[bytes], ObjectInfo] | None = None  # until the first upload
        area.add(self)

    # --- properties ---

    @property
    def key(self) -> bytes:
        """The key of the object that the file will become."""
        return self._key

    @property
    def base(self) -> ObjectInfo | None:
        """The object version that it began as, or was last uploaded as."""
        return self._content.base

    @property
    def size_bytes(self) -> int:
        """The size of the file now."""
        return self._content.extents.size_bytes

    @property
    def mtime_ns(self) -> int:
        """When it was last changed; after an upload, the time that S3 gives it."""
        return self._mtime_ns

    @property
    def dirty(self) -> bool:
        """Whether the file has yet to be uploaded as it is now, or a version of it is set aside."""
        changed = self._content.extents.dirty or self._aside is not None
        return changed and not self._unlinked

    @property
    def failed(self) -> bool:
        """Whether the last upload has failed, so that the local file is kept."""
        return self._failed

    @property
    def unlinked(self) -> bool:
        """Whether the file has no name any more, and only its handles are left."""
        return self._unlinked

    @property
    def used_s(self) -> float:
        """See Reclaimable."""
        return self._content.used_s

    @property
    def path(self) -> Path:
        """The local file."""
        return self._content.path

    @property
    def progress(self) -> Progress:
        """See Progress."""
        return Progress(self._content.path.name, self._journaled, self._failed, self._sent)

    def go_on(
        self,
        key: bytes,
        progress: Progress,
        newest: Callable[[bytes], ObjectInfo],
        *,
        removed: bool = False,
    ) -> None:
        """Go on with what another process of this mount has made of the file.

        `newest` returns the object of a key: that process may have uploaded the file, and died
        before it knew. `removed`: see `unlink`. Needs no room on the disk. Raises ValueError if the
        journal is invalid, OSError, and as `write`; then that process's files stay.
        """
        path = self._area.path / progress.data
        found = Journal(path)
        if not (progress.journaled and found.exists and path.exists()):
            if removed:
                raise ValueError("its journal is gone")
            found.remove()  # that process was about to write it, or to remove it
            self._key = key
            return
        subject, extents = found.reopen()
        mtime_ns = os.stat(path).st_mtime_ns
        local = LocalFile(self._area, path, extents.local)
        local.truncate(extents.size_bytes)  # later bytes belong to a write that did not return
        with self._changed:
            self._newest, self._sent = newest, progress.sent
            self._content.resume(local, extents)
            self._key, self._mtime_ns, self._unlinked = key, mtime_ns, removed
            self._journal, self._journaled, self._failed = found, True, progress.failed
            if subject != self._subject():
                self._note_move()

    # --- reading and changing ---

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file.

        Raises what `fetch` raises, such as PreconditionFailed when others have replaced the base.
        """
        return self._content.read(offset, size)

    def write(self, offset: int | None, data: bytes, claim: Claim = lambda: True) -> int:
        """Write at any offset, or at the end (None); return the number of bytes. Fetches nothing.

        `claim` is called before the file is changed, after a wait for an upload. If it returns
        False, the program was killed meanwhile. Raises StagingFull when there is no room and none
        can be made, and Interrupted when the program or the mount is gone.
        """
        if not data:
            return 0

        def write() -> int:
            need_bytes = self._begin_change(self.size_bytes, claim)
            start = self.size_bytes if offset is None else offset
            need_bytes = need_bytes or self._content.write(start, data)
            if not need_bytes:
                self._note_write(start, start + len(data))
            return need_bytes

        self._with_room(write)
        return len(data)

    def truncate(self, size_bytes: int, claim: Claim = lambda: True) -> None:
        """Cut the file off, or extend it with zeros. Fetches nothing. See `write`."""

        def truncate() -> int:
            if size_bytes == self.size_bytes:
                self._content.check_open()
                return 0
            need_bytes = self._begin_change(min(size_bytes, self.size_bytes), claim)
            if need_bytes:
                return need_bytes
            try:
                if self._journal is not None:
                    self._journal.truncates(size_bytes)
                self._content.truncate(size_bytes)
            except OperationError:
                if self._journal is not None:
                    self._write_journal()
                raise
            return 0

        self._with_room(truncate)

    def _with_room(self, change: Callable[[], int]) -> None:
        """Call `change` with the lock held, and make the room that it asks for until it has it."""
        for _ in range(MAX_TRIES):
            with self._changed:
                need_bytes = change()
            if not need_bytes:
                return
            if not self._area.reclaim(need_bytes):
                break
        raise StagingFull(
            f"{self._area.used_bytes // MIB} MiB are staged: there is no space for more"
        )

    def _begin_change(self, stop: int, claim: Claim) -> int:
        """Wait until the file may be changed, and note on disk that it will be.

        Returns 0, or how many bytes of room are missing. If the file has to be set aside, its copy
        needs only the bytes up to `stop`.
        """
        self._wait_idle()
        if not claim():
            raise Interrupted("the program was killed while the file was uploaded")
        self._content.check_open()
        if self._failed and self._aside is None and not self._unlinked:
            need_bytes = self._set_aside(stop)
            if need_bytes:
                return need_bytes
        if self._journal is None and not self._unlinked:
            self._progress(journaled=True)
            self._write_journal()
        self._mtime_ns = time.time_ns()
        self._content.used_s = time.monotonic()
        return 0

    def _set_aside(self, stop: int) -> int:
        forked = self._content.fork(stop)
        if isinstance(forked, int):
            return forked
        assert self._journal is not None
        self._aside = SetAsideFile(*forked, self._journal, self._mtime_ns)
        self._journal = None
        try:
            self._write_journal()
        except OperationError:
            self._take_back(self._aside)
            raise
        self._on_progress()
        return 0

    def _note_write(self, start: int, stop: int) -> None:
        if self._journal is not None:
            self._journal.wrote(start, stop)
            if self._journal.is_long(self._content.extents):
                self._write_journal()

    # --- uploading ---

    def sync(self, *, keep: bool = True) -> ObjectInfo | None:
        """Upload the file if it has changed; return the object. None if it has been removed.

        On return S3 has all that was written before the call. Raises what the upload raises, with a
        hint that says where the file is kept; the next call tries again. With `keep` False a failed
        file is not kept, and `revert` should follow.
        """
        with self._alone():
            if not self.dirty:
                return None if self._unlinked else self.base
            info = self.base
            if self._content.extents.dirty:  # else the changes since the failed upload were undone
                try:
                    info = self._upload_again()
                except BaseException as error:
                    if keep:
                        self._keep(error)
                    raise
            with self._changed:
                assert info is not None
                self._content.became(info)
                self._mtime_ns = info.mtime_ns
                self._failed, self._sent = False, None
                if not self._content.closed:
                    self._progress(journaled=False)
                    self._forget()
            return info

    def await_upload(self) -> None:
        """Wait while the file is being uploaded."""
        with self._changed:
            self._wait_idle()

    def _upload_again(self) -> ObjectInfo:
        """Upload the file, even if a process that died has replaced the base by doing so."""
        sent = self._sent
        try:
            return self._upload()
        except PreconditionFailed:
            base = None if sent is None else self._object_of(sent)
            if base is None:
                raise
            # It has all bytes of the former base that the file still has.
            self._content.base = base
            return self._upload()
        finally:
            self._newest = None

    def _object_of(self, sent: Sent) -> ObjectInfo | None:
        """Return the newest object of the key if a process that died has made it of this file."""
        if self._newest is None:
            return None
        with suppress(OperationError):
            info = self._newest(self._key)
            return info if sent.is_in(info, self._fetch) else None
        return None

    def _upload(self) -> ObjectInfo:
        base = self.base
        sink = self._begin(self._key, base)
        try:
            sent = send(self._content, base, sink, self._part_bytes)
            with self._changed:
                self._sent = sent
                self._on_progress()
            info = sink.finish()
        except BaseException:
            sink.abort()
            raise
        if info.size_bytes != self.size_bytes:
            raise BadAnswer(f"the object has {info.size_bytes} bytes, not {self.size_bytes}")
        return info

    def _keep(self, error: BaseException) -> None:
        """Complete a file whose upload has failed as far as possible; say where it is."""
        with self._changed:
            self._failed = True
            self._on_progress()
        gone = PreconditionFailed | NotFound | BucketNotFound
        if isinstance(error, S3Error) and not error.retryable and not isinstance(error, gone):
            self._fill()
        with self._changed:
            if not self._content.closed:
                self._write_description()
                self._drop_aside()
        where = f"the written data is kept in '{self._content.path}' (docs/staging.md)"
        if isinstance(error, OperationError) and where not in error.hint:
            error.hint = f"{error.hint}; {where}" if error.hint else where

    def _fill(self) -> None:
        """Fetch missing bytes while there are time and room."""
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
            log.debug("the missing bytes cannot be fetched", key=self._key, reason=str(error))

    def revert(self) -> bool:
        """Undo the changes since the last upload, whether that succeeded or failed.

        Returns False, and does nothing, if there was no upload.
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
                self._progress(journaled=False)
                self._content.reset()
                self._mtime_ns = self.base.mtime_ns
                self._forget()
            return True

    # --- removing, moving, the end ---

    def unlink(self, delete: Callable[[], None], *, survives: bool = False) -> None:
        """Remove the file: `delete` removes the object, or replaces it with another one.

        Nothing is uploaded during `delete` and after it. Until it is closed, the file can be read
        and written as far as it is local; with `survives`, also by another process of this mount.
        If `delete` raises, everything is as before.
        """
        with self._alone():
            delete()
            with self._changed:
                self._unlinked = True
                if survives:
                    self._note_removal()
                else:
                    self._forget()

    def move(self, key: bytes, copy: Callable[[ObjectInfo], ObjectInfo]) -> None:
        """Give the file another key. `copy` moves the base there and returns the moved object.

        A file without a base was never uploaded, and only changes its key; call `sync` first if it
        replaces another object. Does nothing for a file that has been removed. If `copy` raises,
        everything is as before.
        """
        with self._alone():
            base = self.base
            if self._unlinked:
                return
            moved = None if base is None else copy(base)
            with self._changed:
                self._key, self._content.base = key, moved
                self._on_progress()
                if self._journal is not None:
                    self._note_move()

    def reclaim(self, size_bytes: int) -> int:
        """See Reclaimable."""
        with self._changed:
            if self._busy or self._failed or self._unlinked or self._content.closed:
                return 0
            return self._content.reclaim(size_bytes)

    def close(self) -> bool:
        """Remove the local file after its last handle; False if it has yet to be uploaded.

        In that case it stays as it is: `sync` and close it again, or the mount's end keeps it.
        """
        with self._changed:
            self._wait_idle()
            if not self._content.closed:
                if self.dirty:
                    return False
                self._remove()
        return True

    def end(self) -> None:
        """See Reclaimable."""
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
            self._failed = True  # so that nothing local is given back
            self._write_description()
            recovery.say_kept(self._content.path, self._subject(), self._content.extents)
            if self._journal is not None:
                self._journal.close()
            self._content.close(keep=True)
            self._area.remove(self)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other thread change the file inside the context."""
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

    def _progress(self, *, journaled: bool) -> None:
        """Note that the journal on the disk counts from now on, or does not."""
        self._journaled = journaled
        self._on_progress()

    def _wait_idle(self) -> None:
        while self._busy:
            self._content.wait()

    def _subject(self) -> Subject:
        etag, size_bytes = (self.base.etag, self.base.size_bytes) if self.base else (None, None)
        key = None if self._unlinked else self._key
        return Subject(self._area.bucket, key, etag, size_bytes)

    def _write_journal(self) -> None:
        """Write the journal, for the first time or again."""
        journal_ = self._journal or Journal(self._content.path)
        stays = self._failed or self._unlinked
        journal_.rewrite(self._subject(), self._content.extents, fetched=stays)
        self._journal = journal_

    def _note_removal(self) -> None:
        """Have the journal say that nothing will become of the file; without room, have none.

        From then on it names the fetched bytes, too: the object has them no longer.
        """
        self._drop_aside()
        self._progress(journaled=True)  # first: an earlier journal has the file's key
        try:
            self._write_journal()
        except OperationError as error:
            log.warning(
                "a removed file that is open would not survive the mount's process",
                path=str(self._content.path),
                reason=str(error),
            )
            self._forget()
            self._progress(journaled=False)

    def _note_move(self) -> None:
        """Write the new key to the journal. A failure is only logged: the file has moved anyway."""
        try:
            self._write_journal()
            if self._aside is not None:
                self._aside.write_description(self._subject())
        except OperationError as error:
            log.warning(
                "the journal of a staged file still has its old key",
                path=str(self._content.path),
                key=self._key,
                reason=str(error),
            )

    def _write_description(self) -> None:
        """Write the file to the disk with a description, so that users can find it."""
        try:
            self._write_journal()
            journal.write_description(self._content.path, self._subject(), self._content.extents)
            self._content.sync()
        except OperationError as error:
            log.warning("the description of a kept file cannot be written", reason=str(error))

    def _take_back(self, aside: SetAsideFile) -> None:
        """Go on with the file that was set aside."""
        self._aside = None
        copy, self._journal, self._mtime_ns = self._journal, aside.journal, aside.mtime_ns
        self._content.resume(aside.local, aside.extents)
        self._on_progress()
        if copy is not None:
            copy.remove()

    def _drop_aside(self) -> None:
        if self._aside is not None:
            self._aside.remove()
            self._aside = None

    def _forget(self) -> None:
        """Remove the journal and the file set aside: the local file is no longer needed."""
        if self._journal is not None:
            self._journal.remove()
            self._journal = None
        self._drop_aside()

    def _remove(self) -> None:
        self._forget()
        self._content.close(keep=False)
        self._area.remove(self)
