"""Prepare files so that they are opened without the interpreter (`native._prepared`).

A program that opens one small file is likely to open others of its directory. So once Python has
opened one, the files that follow it are prepared, on a thread of their own: those that the kernel
knows, and that an open would find in the data cache without asking S3; without a cache, those that
an open would fetch from S3. They are prepared in batches, in the order of their names. If they are
opened in that order, the disk begins to read the files of the next batch.

Preparing a file takes a quarter of the time of an open. It is in vain if the file is never opened,
or too late. So what may be prepared is limited by a credit, which grows when prepared files are
opened.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from mountpoint.errors import StaleInode
from mountpoint.fs.inodes import Inode, InodeNumber, InodeTable
from mountpoint.fs.open import ARCHIVE_CLASSES, Opener
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.reads.adoption import Adopter
from mountpoint.fs.session.recovery import text_of_reader
from mountpoint.fs.writes.backend import WriteBackend
from mountpoint.fs.writes.readers import Readers
from mountpoint.listing.cache import ListingCache
from mountpoint.native._lane import LaneSource, expect_all
from mountpoint.native._prepared import MAX_FILES, PreparedFiles
from mountpoint.read.streams import Streams, WholeSource
from mountpoint.s3.client import ObjectInfo

log = structlog.get_logger(__name__)

#: Files of a batch. At 4,000 opens a second they last for 4 ms.
BATCH_FILES = 16
#: Batches that are remembered: those of all prepared files.
MAX_BATCHES = MAX_FILES // BATCH_FILES
#: Places in directories at which files are being prepared.
MAX_RUNS = 8
#: The credit: the most, what each open of a prepared file adds, and each second.
MAX_CREDIT = 2048.0
CREDIT_OF_OPEN = 2
CREDIT_PER_S = 32.0
#: How long the thread waits for opens, so that it sees the end of the mount.
WAIT_S = 1.0
#: After so many lookups it is seen whether programs open what they look up.
LOOKUPS = 32
#: No file's number.
NONE = InodeNumber(0)
#: How long a file that its open fetches is prepared. The keys of requests are renewed minutes
#: before they expire.
FETCHABLE_S = 5.0
#: After S3 was late for such an open, Python opens files for so long.
LATE_S = 1.0


class Batch(NamedTuple):
    """Files that were prepared together: the last one, and where their bytes come from.

    `before` is the file that they follow, and `generation` that of `PreparedFiles`.
    """

    generation: int
    before: InodeNumber
    last: InodeNumber
    sources: list[LaneSource]


class Preparer:
    """Prepares the files of one mount.

    One thread calls `step`. All call `looked_up`, whose counts are approximate. `resized` has
    the inodes of files that are being truncated. `logs`: there is a session's log.
    """

    def __init__(
        self,
        prepared: PreparedFiles,
        opener: Opener,
        adopter: Adopter,
        streams: Streams,
        listings: ListingCache,
        inodes: InodeTable,
        readers: Readers,
        local: OverlayNames,
        backend: WriteBackend,
        resized: dict[InodeNumber, float],
        *,
        logs: bool,
    ) -> None:
        # dependencies
        self._prepared = prepared
        self._opener = opener
        self._adopter = adopter
        self._streams = streams
        self._listings = listings
        self._inodes = inodes
        self._readers = readers
        self._local = local
        self._backend = backend
        self._resized = resized
        # constants
        self._logs = logs
        # mutable
        self._credit = MAX_CREDIT
        self._seen_s = time.monotonic()
        self._seen_used = 0
        #: The files after which others are to be prepared.
        self._runs: deque[InodeNumber] = deque()
        #: The last files of the batches whose first files were opened lately: a batch that follows
        #: one of these is opened in order.
        self._lasts: deque[InodeNumber] = deque(maxlen=MAX_RUNS)
        #: By their first files, oldest first.
        self._batches: OrderedDict[InodeNumber, Batch] = OrderedDict()
        #: Whether opens fetch files from S3. Then these are also prepared at their lookup.
        self.fetches = False
        self._lookups = 0
        self._opens = 0  # until the last look at them
        self._failed = 0  # opens that could not fetch their file, likewise
        self._late_until_s = 0.0
        self._pays = False  # most files that are looked up are opened
        #: The first file of the batch that follows a file.
        self._first_after: dict[InodeNumber, InodeNumber] = {}

    def run(self, stopping: threading.Event) -> None:
        """Prepare files until the mount ends."""
        while not stopping.is_set():
            numbers = self._prepared.wait(0.0 if self.is_preparing else WAIT_S)
            try:
                self.step([InodeNumber(each) for each in numbers])
            except Exception as error:  # the files are opened by Python
                log.error("files could not be prepared: a bug", exc_info=error)

    def looked_up(self, inode: Inode) -> None:
        """Prepare a small file that a program looks up, if programs open what they look up.

        Its open then fetches it from S3. Some lookups are left out: so it is still learned how much
        of such files is read.
        """
        if self._prepared.has_opened:
            self._adopter.note_opened()
        self._lookups += 1
        if self._lookups % LOOKUPS == 0:
            opens = self._opener.opened + self._prepared.opens
            opens, self._opens = opens - self._opens, opens
            self._pays = 2 * opens >= LOOKUPS
            return
        if self._may_be_late():
            return
        info = inode.info
        if not self._pays or info is None:
            return
        generation = self._prepared.generation
        if self._may_be_fetched(inode, info):
            found = self._streams.small_source(info)
            if found is not None:
                until_s = time.monotonic() + FETCHABLE_S
                self._add(inode, info, generation, found, until_s)

    def step(self, opened: list[InodeNumber]) -> None:
        """Learn that files were opened, and prepare one batch."""
        self._adopter.note_opened()
        self._earn()
        for number in opened:
            batch = self._batch(number)
            last = number if batch is None else batch.last
            # If none follows a batch of the data cache, the directory ends.
            following = self._batch(self._first_after.get(last, NONE if self.fetches else number))
            if batch is None or following is None:
                if len(self._runs) < MAX_RUNS:
                    self._runs.append(last)
            elif batch.before in self._lasts:
                expect_all(following.sources)
            self._lasts.append(last)
        if self._runs:
            last_prepared = self._prepare_after(self._runs.popleft())
            # What is fetched is prepared when it is likely to be opened soon.
            if last_prepared is not None and not self.fetches:
                self._runs.appendleft(last_prepared)

    def _batch(self, first: InodeNumber) -> Batch | None:
        """Return the batch that begins with a file, if it is still prepared."""
        batch = self._batches.get(first)
        return batch if batch and batch.generation == self._prepared.generation else None

    @property
    def is_preparing(self) -> bool:
        """Whether another batch is to be prepared."""
        return bool(self._runs)

    def _earn(self) -> None:
        """Get credit for the opens and the time since the last call."""
        used, now_s = self._prepared.used, time.monotonic()
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        opens, self._seen_used = used - self._seen_used, used
        earned = CREDIT_OF_OPEN * opens + CREDIT_PER_S * passed_s
        self._credit = min(self._credit + earned, MAX_CREDIT)

    def _prepare_after(self, number: InodeNumber) -> InodeNumber | None:
        """Prepare the batch that follows a file; return its last file, or None."""
        generation = self._prepared.generation  # before all else
        now_s = time.monotonic()
        try:
            inode = self._inodes.get(number)
        except StaleInode:
            return None
        if inode.parent is None or self._credit < BATCH_FILES:
            return None
        files = self._files_after(inode, inode.parent, now_s)
        found = self._sources([info for _, info in files])
        batch = [
            (each, info, source)
            for (each, info), source in zip(files, found, strict=True)
            if source is not None
        ]
        if not batch:
            self._credit -= BATCH_FILES  # a cache that has few files is asked less often
            return None
        last = batch[-1][0].number
        # Not the file that a program has just opened.
        first = next((each.number for each, *_ in batch if each.number != number), last)
        for each, info, source in batch:
            until_s = now_s + FETCHABLE_S if self.fetches else each.fresh_until_s
            self._add(each, info, generation, source, until_s, wakes=each.number == first)
        self._credit -= len(batch)
        sources = [found.source for *_, found in batch]
        self._remember(first, Batch(generation, number, last, sources))
        return last

    def _sources(self, infos: list[ObjectInfo]) -> Sequence[WholeSource | None]:
        """Return where an open would get each file's bytes; None: Python must open it."""
        if not self.fetches:
            return self._streams.whole_sources(infos)
        if self._may_be_late():
            return [None] * len(infos)
        return [self._streams.small_source(info) for info in infos]

    def _may_be_late(self) -> bool:
        """Whether an open has just failed to fetch its file: Python knows what to do then."""
        failed, now_s = self._prepared.failed, time.monotonic()
        if failed != self._failed:
            self._failed = failed
            self._late_until_s = now_s + LATE_S
        return now_s < self._late_until_s

    def _add(
        self,
        inode: Inode,
        info: ObjectInfo,
        generation: int,
        found: WholeSource,
        until_s: float,
        *,
        wakes: bool = False,
    ) -> None:
        """Prepare a file. See PreparedFiles.add."""
        self._prepared.add(
            inode.number,
            generation,
            until_s,
            info.size_bytes,
            found.source,
            text_of_reader(inode, info) if self._logs else b"",
            wakes=wakes,
            late_s=found.late_s,
        )

    def _remember(self, first: InodeNumber, batch: Batch) -> None:
        self._forget(first)
        self._batches[first] = batch
        self._first_after[batch.before] = first
        if len(self._batches) > MAX_BATCHES:
            self._forget(next(iter(self._batches)))

    def _forget(self, first: InodeNumber) -> None:
        """Forget the batch that begins with a file, if there is one."""
        batch = self._batches.pop(first, None)
        if batch is not None and self._first_after.get(batch.before) == first:
            del self._first_after[batch.before]

    def _files_after(
        self, inode: Inode, directory: Inode, now_s: float
    ) -> list[tuple[Inode, ObjectInfo]]:
        """Return a file and those that follow it, as far as they may be prepared."""
        entries = self._listings.files_after(directory.key, inode.name, BATCH_FILES)
        known = self._listings.find(directory.key, inode.name)
        if known is not None:
            entries.insert(0, known[0])
        files = []
        for entry in entries:
            found = self._inodes.find(directory, entry)
            info = None if found is None else found.info
            if found is not None and info is not None and self._may_be(found, info, now_s):
                files.append((found, info))
        return files

    def _may_be(self, inode: Inode, info: ObjectInfo, now_s: float) -> bool:
        """Whether a file may be prepared, and is not."""
        if self._prepared.has(inode.number, now_s):
            return False
        if self.fetches:
            return self._may_be_fetched(inode, info)
        return self._opener.is_recent(inode, info, now_s) and self._is_free(inode)

    def _may_be_fetched(self, inode: Inode, info: ObjectInfo) -> bool:
        """Whether an open of a file would fetch all of it."""
        return (
            not inode.paged and info.storage_class not in ARCHIVE_CLASSES and self._is_free(inode)
        )

    def _is_free(self, inode: Inode) -> bool:
        """Whether no program changes a file, or is about to."""
        return (
            inode.key not in self._readers.expected
            and self._local.file(inode.directory, inode.name) is None
            and not self._backend.is_written(inode)
            and inode.number not in self._resized
        )
