"""Make known to Python what was opened without the interpreter (`native._handles`).

The handle of such a file has a lane, and no object. Where an object is needed, the handle is
adopted: it gets a `ReadHandle` under the same number.
"""

import contextlib
import threading

import structlog

from mountpoint.errors import StaleInode
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import Inode, InodeNumber, PageState
from mountpoint.fs.reads.handle import ReadContext, ReadHandle
from mountpoint.fs.session.log import SessionLog
from mountpoint.native._handles import OpenedFile
from mountpoint.native._lane import unregister
from mountpoint.read.streams import Streams

log = structlog.get_logger(__name__)


class Adopter:
    """Adopts the handles of a mount. Thread-safe. `session` has their lines of the log."""

    def __init__(self, context: ReadContext, streams: Streams, session: SessionLog | None) -> None:
        # dependencies
        self._mount = context
        self._streams = streams
        self._session = session
        # mutable
        self._adopting = threading.Lock()

    def adopt(self, inode: Inode) -> None:
        """Give all handles of a file that were opened without the interpreter an object.

        Those that come later find what the caller has done before.
        """
        self._mount.prepared.forget_all()
        with self._adopting:
            self._mark_opened()
            for opened in self._mount.prepared.handles.take(inode.number):
                self._adopt(inode, opened)

    def adopt_handle(self, number: HandleNumber) -> None:
        """Give a handle an object, if it was opened without the interpreter."""
        with self._adopting:
            opened = self._mount.prepared.handles.take_handle(number)
            if opened is None:
                return
            try:
                inode = self._mount.inodes.get(InodeNumber(opened.inode))
            except StaleInode:
                unregister(number)
                raise
            self._adopt(inode, opened)

    def note_opened(self) -> None:
        """Note of which files the kernel may have pages, though Python has not opened them."""
        with self._adopting:
            self._mark_opened()

    def _mark_opened(self) -> None:
        for number in self._mount.prepared.take_opened():
            with contextlib.suppress(StaleInode):
                inode = self._mount.inodes.get(InodeNumber(number))
                inode.paged = max(inode.paged, PageState.SOME)

    def _adopt(self, inode: Inode, opened: OpenedFile) -> None:
        info = inode.info
        assert info is not None
        self._mount.inodes.opened(inode)
        self._mount.readers.joined(inode)
        stream = self._streams.stream(info)
        stream.use_disk()
        number = HandleNumber(opened.handle)
        if self._session is not None:
            try:
                self._session.note_line("handle", number, opened.line)
            except OSError as error:  # the handle works, but for a process that goes on
                log.warning("an open file is not in the session's log", reason=str(error))
        unregister(number)
        stream.lane.register(number)
        # At last: until then a close waits in `adopt_handle`.
        self._mount.files.put(number, ReadHandle(inode, stream, self._mount, version=info))
