"""The bytes of one staged file: local, or fetched from its base when they are read.

A read of missing bytes fetches them from exactly the base's version, in blocks, and keeps them. No
lock is held meanwhile: fetched bytes are stored only where bytes are still missing, and only if the
base is still the same. Where there is no room for them, the read returns them without storing them.
A write fetches nothing, not even for a part of a block.

Not known here: when the file may be changed, and when it is uploaded.
"""

import copy
import threading
import time
from collections.abc import Callable

from mountpoint.config import MIB
from mountpoint.errors import BadAnswer, BadHandle, Interrupted, OperationError, StagingFull
from mountpoint.s3.client import ObjectInfo
from mountpoint.staging.area import StagingArea
from mountpoint.staging.extents import Extents
from mountpoint.staging.range_set import Range, Ranges
from mountpoint.staging.sparse_file import BLOCK_BYTES, LocalFile

#: Missing bytes are fetched in blocks of this size. A request takes 20 to 30 ms, and 1 MiB then
#: only 11 ms more: the bytes around are nearly free. The kernel asks for no more at a time.
FETCH_BYTES = MIB
#: How often a waiting thread checks whether the mount is going away, in seconds.
LOOK_S = 1.0

Fetch = Callable[[ObjectInfo, int, int], bytes]


class Content:
    """The bytes of a file that begins as `base`, or empty (None), in a new local file.

    `changed` guards everything. `read` and `missing` take it; all other methods need it held.
    """

    def __init__(
        self,
        area: StagingArea,
        base: ObjectInfo | None,
        fetch: Fetch,
        changed: threading.Condition,
        stopping: threading.Event,
    ) -> None:
        # dependencies
        self._area = area
        self._fetch = fetch
        self._stopping = stopping
        # mutable, guarded by _changed
        self._changed = changed
        self.base = base
        self.extents = Extents(None if base is None else base.size_bytes)
        self.used_s = time.monotonic()
        self.closed = False
        self._fetching: set[int] = set()  # offsets of the blocks being fetched
        self._local = LocalFile(area, area.new_path())
        self.path = self._local.path
        try:
            self._local.truncate(self.extents.size_bytes)
        except OperationError:
            self._local.close(keep=False)
            raise

    def missing(self, start: int, stop: int) -> list[Range]:
        """Return the ranges of [start, stop) that only the base has."""
        with self._changed:
            return self.extents.missing(start, stop)

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file.

        Raises what `fetch` raises, such as PreconditionFailed when others have replaced the base.
        """
        got: dict[int, bytes] = {}  # bytes fetched for this read, by offset
        base = self.base
        while True:
            with self._changed:
                self.check_open()
                self.used_s = time.monotonic()
                stop = min(offset + size, self.extents.size_bytes)
                if offset >= stop:
                    return b""
                if base is not self.base:
                    got, base = {}, self.base
                missing = self.extents.missing(offset, stop)
                wanted = _not_in(got, missing)
                if wanted is None:
                    return self._assembled(offset, stop, missing, got)
                block = self._claim(*wanted)
                if block is None:  # another thread is fetching it
                    self.wait()
                    continue
            try:
                data = self._fetched(base, *block)
                if data is not None:
                    got[block[0]] = data
            finally:
                with self._changed:
                    first = block[0] - block[0] % FETCH_BYTES
                    self._fetching -= set(range(first, block[1], FETCH_BYTES))
                    self._changed.notify_all()

    def _claim(self, start: int, stop: int) -> Range | None:
        """Claim the next blocks in [start, stop) that no thread is fetching; return their range.

        None if another thread is fetching the first of them (lock held).
        """
        first = start - start % FETCH_BYTES
        last = first
        while last < stop and last not in self._fetching:
            self._fetching.add(last)
            last += FETCH_BYTES
        missing = self.extents.missing(first, last)
        return (missing[0][0], missing[-1][1]) if last > first else None

    def _fetched(self, base: ObjectInfo | None, start: int, stop: int) -> bytes | None:
        """Fetch a range and keep it; None if the base has changed in the meantime."""
        assert base is not None  # or nothing would be missing
        try:
            data = self._fetch(base, start, stop)
            if len(data) != stop - start:
                raise BadAnswer(f"{len(data)} bytes arrived instead of {stop - start}")
        except Exception:
            if self.base is not base:  # this mount has replaced it
                return None
            raise
        need_bytes = self._keep_fetched(base, start, data)
        if need_bytes and self._area.reclaim(need_bytes):
            self._keep_fetched(base, start, data)
        return data if self.base is base else None

    def _keep_fetched(self, base: ObjectInfo, start: int, data: bytes) -> int:
        """Store the bytes that are still missing; return how many bytes of room that lacks."""
        view = memoryview(data)
        with self._changed:
            if self.base is not base or self.closed:
                return 0
            for first, last in self.extents.missing(start, start + len(data)):
                try:
                    need_bytes = self._local.write(first, view[first - start : last - start])
                except StagingFull:
                    return 0  # the disk is full: return them without storing them
                if need_bytes:
                    return need_bytes
                self.extents.fetched(first, last)
        return 0

    def _assembled(
        self, offset: int, stop: int, missing: list[Range], got: dict[int, bytes]
    ) -> bytes:
        """Return a range of the file, including fetched bytes that were not stored (lock held)."""
        data = self._local.read(offset, stop)
        if not missing:
            return data
        whole = bytearray(data)
        for start, fetched in got.items():
            for first, last in Ranges(missing).within(start, start + len(fetched)):
                whole[first - offset : last - offset] = fetched[first - start : last - start]
        return bytes(whole)

    # --- with the lock held ---

    def write(self, offset: int, data: bytes) -> int:
        """Write; return 0, or how many bytes of room are missing."""
        stop = offset + len(data)
        try:
            need_bytes = self._local.write(offset, data)
        except OperationError:
            self._undo(offset, stop)
            raise
        if not need_bytes:
            self.extents.write(offset, stop)
        return need_bytes

    def _undo(self, start: int, stop: int) -> None:
        """Make the extents match the local file after a write that failed midway."""
        extents = self.extents
        size_bytes, base_stop = extents.size_bytes, extents.base_stop
        for first, last in extents.changed.gaps(start, min(stop, base_stop)):
            extents.dropped(first, last)
        # Some of these zeros may be new bytes now; it is not known which.
        extents.write(max(start, base_stop), min(stop, size_bytes))
        self._local.truncate(size_bytes)

    def truncate(self, size_bytes: int) -> None:
        """Cut the file off, or extend it with zeros."""
        self._local.truncate(size_bytes)
        self.extents.truncate(size_bytes)

    def fork(self, stop: int) -> tuple[LocalFile, Extents] | int:
        """Go on in a copy of the local file, cut off at `stop`; return the old file.

        Returns how many bytes of room are missing if there is too little.
        """
        extents = copy.deepcopy(self.extents)
        extents.truncate(stop)
        local = LocalFile(self._area, self._area.new_path())
        try:
            local.truncate(stop)
            for start, last in extents.local:
                need_bytes = local.copy(self._local, start, last)
                if need_bytes:
                    local.close(keep=False)
                    return need_bytes
        except BaseException:
            local.close(keep=False)
            raise
        before = self._local, self.extents
        self._exchange(local, extents)
        return before

    def resume(self, local: LocalFile, extents: Extents) -> None:
        """Go on in another local file, with these extents; remove the present one."""
        self._local.close(keep=False)
        self._exchange(local, extents)

    def reset(self) -> None:
        """Go back to the base, with nothing local."""
        assert self.base is not None
        local = LocalFile(self._area, self._area.new_path())
        try:
            local.truncate(self.base.size_bytes)
        except OperationError:
            local.close(keep=False)
            raise
        self.resume(local, Extents(self.base.size_bytes))

    def _exchange(self, local: LocalFile, extents: Extents) -> None:
        self._local, self.path, self.extents = local, local.path, extents

    def became(self, info: ObjectInfo) -> None:
        """Note that the content is now the object `info`, which becomes the base."""
        self.base = info
        self.extents.rebase()

    def reclaim(self, size_bytes: int) -> int:
        """Free about `size_bytes` of room by dropping bytes of the base; return the freed bytes."""
        freed_bytes = 0
        for start, stop in self.extents.clean():
            first = start + -start % BLOCK_BYTES
            last = stop - stop % BLOCK_BYTES
            freed = self._local.punch(first, last) if first < last else 0
            if freed < 0:
                break
            if freed:
                self.extents.dropped(first, last)
                freed_bytes += freed
            if freed_bytes >= size_bytes:
                break
        return freed_bytes

    def sync(self) -> None:
        """Write the local file to the disk itself, so that it survives the end of the machine."""
        self._local.sync()

    def close(self, *, keep: bool) -> None:
        """Close the local file, and remove it unless it is to be kept."""
        self.closed = True
        self._local.close(keep=keep)
        self._changed.notify_all()

    def check_open(self) -> None:
        """Raise BadHandle if it is closed."""
        if self.closed:
            raise BadHandle("the file has been closed")

    def wait(self) -> None:
        """Wait until something has changed, or for a second. Raises Interrupted."""
        if self._stopping.is_set():
            raise Interrupted("the mount is ending")
        self._changed.wait(LOOK_S)


def _not_in(got: dict[int, bytes], missing: list[Range]) -> Range | None:
    """Return the first missing range that was not fetched either."""
    if not missing:
        return None
    have = Ranges((start, start + len(data)) for start, data in got.items())
    return next((gap for start, stop in missing for gap in have.gaps(start, stop)), None)
