"""The FUSE adapter: one method per FUSE operation, from llfuse's types to `FileSystem` and back.

It has no semantics of its own. One wrapper serves all operations: it turns each exception into an
errno and one log line. An exception other than `FUSEError` would end llfuse's main loop, so none
leaves the wrapper. llfuse's threads call at the same time (`binding` removes its lock): this is
ordinary threaded Python.
"""

import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Callable
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import structlog

from mountpoint.errors import (
    NO_OPTION,
    BadArgument,
    BadHandle,
    Interrupted,
    MaybeDone,
    NoSuchEntry,
    NotPermitted,
    OperationError,
    S3Error,
    outcome,
)
from mountpoint.fs.attributes import Attributes
from mountpoint.fs.directories import DirectoryEntry
from mountpoint.fs.filesystem import FileSystem
from mountpoint.fs.handles import HandleNumber
from mountpoint.fs.inodes import Inode, InodeNumber
from mountpoint.fs.posix_metadata import FileAttributes
from mountpoint.fuse import entries
from mountpoint.fuse.binding import (
    appends,
    claim,
    go_direct,
    is_abandoned,
    is_repeated,
    is_wide,
    listing_room,
    llfuse,
    rename_flags,
    request_number,
    request_pid,
    set_listed,
)
from mountpoint.fuse.structures import EntryAttributes, RequestContext, SetattrFields
from mountpoint.listing.tree import MAX_NAME_BYTES
from mountpoint.log.throttle import LogThrottle
from mountpoint.metrics.recorder import Meters
from mountpoint.read.stream import Bytes
from mountpoint.system.procfs import process_of, program_of, who_closes

log = structlog.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

#: struct statvfs: room without limit, so that programs that check for free space go on. All numbers
#: fit into a signed 32-bit integer, for programs that use those: 2 PiB in blocks of 1 MiB.
ROOM_BLOCK_BYTES = 1 << 20
ROOM_BLOCKS = (1 << 31) - 1

#: The kernel looks up no names for these.
DOTS = (b".", b"..")

#: A flag of renameat2(2), linux/fs.h.
RENAME_NOREPLACE = 1

#: How long the kernel may cache that a name does not exist. A listing tells us of a new file, but
#: not the kernel: `ls` shows the file, and it can be opened a second later at most.
LONGEST_ABSENCE_S = 1.0

#: How long the kernel may cache a new file's attributes: programs stat it twice before their first
#: write. Later the kernel asks again. Until then no other program can write the file.
NEW_TTL_S = 0.1


#: Why an operation fails although it has succeeded: the kernel drops its answer.
KILLED = "the program was killed while it waited"


def operation(
    subject: str, *, undo: Callable[["Operations", Any], None] | None = None
) -> Callable[
    [Callable[Concatenate["Operations", P], R]], Callable[Concatenate["Operations", P], R]
]:
    """Make a method an operation. `subject` names its first arguments:

    "inode", "child" (inode and name), "file" or "directory" (a handle), "mount"; or "closed", a
    file's handle that is no longer valid when the operation ends.

    `undo` gives back what the kernel would have got with a result, if its program was killed.
    """

    def decorate(
        method: Callable[Concatenate["Operations", P], R],
    ) -> Callable[Concatenate["Operations", P], R]:
        name = method.__name__

        @functools.wraps(method)
        def wrapper(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> R:
            timer = self._meters.operations.get(name) or self._meters.operation(name)
            begun_ns = timer.begin()
            # Its handle ends before the operation can fail.
            closed: Any = args[0] if subject == "closed" else None
            inode: Inode | None = None
            failed = True
            try:
                inode = None if closed is None else self._fs.inode_of_file(closed)
                result = method(self, *args, **kwargs)
                if undo is not None and not claim():
                    undo(self, result)
                    raise Interrupted(KILLED)
                failed = False
            except Exception as error:
                path = self._path(subject, args) if inode is None else self._fs.shown(inode.key)
                self._fail(name, path, error)
            finally:
                timer.end(begun_ns, failed)
            return result

        return wrapper

    return decorate


def _forget(operations: "Operations", entry: EntryAttributes) -> None:
    if entry.st_ino:
        operations._fs.forget(InodeNumber(entry.st_ino), 1)


def _close_directory(operations: "Operations", handle: HandleNumber) -> None:
    operations._fs.releasedir(handle)


def _give_up(operations: "Operations", handle: HandleNumber) -> None:
    """Close a file as the kernel does for a program that was killed after it had opened it."""
    with contextlib.suppress(OperationError):
        operations._fs.flush(handle, process_of(request_pid()), killed=True)
    with contextlib.suppress(OperationError):
        operations._fs.release(handle)


def _give_up_new(operations: "Operations", created: tuple[HandleNumber, EntryAttributes]) -> None:
    handle, entry = created
    _give_up(operations, handle)
    _forget(operations, entry)


class Operations(llfuse.Operations):  # type: ignore[misc]  # llfuse has no types
    """The operations that llfuse calls, for one `FileSystem`.

    `on_ready` is called after the kernel's INIT: from then on the mount serves requests.
    """

    def __init__(
        self, filesystem: FileSystem, on_ready: Callable[[], None], meters: Meters | None = None
    ) -> None:
        super().__init__()
        self._meters = meters or Meters()
        self._fs = filesystem
        self._on_ready = on_ready
        self._throttle = LogThrottle()

    @operation("mount")
    def init(self) -> None:
        """Report that requests are being served."""
        self._on_ready()

    @operation("child", undo=_forget)
    def lookup(self, parent: InodeNumber, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """See FileSystem. An absence that may be cached is answered with its ttl."""
        try:
            return _entry_attributes(self._fs.lookup(parent, name, ctx.pid))
        except NoSuchEntry as error:
            if error.ttl_s <= 0:
                raise
            return _no_entry(min(error.ttl_s, LONGEST_ABSENCE_S))

    @operation("inode")
    def getattr(self, inode: InodeNumber, ctx: RequestContext) -> EntryAttributes:
        """See FileSystem."""
        return _entry_attributes(self._fs.getattr(inode, ctx.pid))

    @operation("mount")
    def forget(self, inode_list: list[tuple[InodeNumber, int]]) -> None:
        """See FileSystem."""
        for inode, lookups in inode_list:
            self._fs.forget(inode, lookups)

    @operation("inode")
    def access(self, inode: InodeNumber, mode: int, ctx: RequestContext) -> bool:
        """See FileSystem."""
        return self._fs.access(inode, mode, ctx.uid, ctx.gid)

    @operation("inode", undo=_close_directory)
    def opendir(self, inode: InodeNumber, ctx: RequestContext) -> HandleNumber:
        """See FileSystem."""
        if is_repeated():
            self._fs.close_unknown_directory(request_number())
        return self._fs.opendir(inode, ctx.pid)

    @operation("directory")
    def readdir(self, fh: HandleNumber, off: int) -> list[tuple[bytes, EntryAttributes, int]]:
        """See FileSystem. A list, because llfuse iterates under its lock."""
        room = listing_room()
        if room:
            return self._listed_with_attributes(fh, off, room)
        return [
            (entry.name, _listed_attributes(entry), entry.next_position)
            for entry in self._fs.readdir(fh, off)
        ]

    def _listed_with_attributes(
        self, fh: HandleNumber, off: int, room: int
    ) -> list[tuple[bytes, EntryAttributes, int]]:
        """Return as many entries as fit into `room` bytes with their attributes, and set these.

        Each entry with attributes counts as a lookup of its inode.
        """
        lines, attributes, looked_up = [], [], []
        used = self._fs.has_use_for_attributes(fh, off)
        for entry in self._fs.readdir(fh, off, room // entries.MIN_BYTES):
            room -= entries.size_of(entry.name)
            if room < 0:
                break
            known = None
            if used and entry.name not in DOTS:
                known = self._fs.lookup_listed(fh, entry)
            attributes.append(entries.UNKNOWN if known is None else entries.entry_out(known))
            if known is not None:
                looked_up.append(known.inode)
            lines.append((entry.name, _listed_attributes(entry), entry.next_position))
        if not claim():
            for inode in looked_up:
                self._fs.forget(inode, 1)
            raise Interrupted(KILLED)
        set_listed(b"".join(attributes))
        return lines

    @operation("directory")
    def releasedir(self, fh: HandleNumber) -> None:
        """See FileSystem."""
        self._fs.releasedir(fh)

    @operation("child", undo=_forget)
    def mkdir(
        self, parent: InodeNumber, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        """See FileSystem. Directories always have the mount's mode."""
        return _entry_attributes(self._fs.mkdir(parent, name))

    @operation("child")
    def rmdir(self, parent: InodeNumber, name: bytes, ctx: RequestContext) -> None:
        """See FileSystem."""
        _check_new()
        self._fs.rmdir(parent, name)

    @operation("child", undo=_give_up_new)
    def create(
        self, parent: InodeNumber, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[HandleNumber, EntryAttributes]:
        """See FileSystem. The kernel has already applied the process's umask."""
        before = self._fs.opened_before(request_number(), creates=True) if is_repeated() else None
        handle, attributes = before or self._fs.create(
            parent, name, flags, process_of(ctx.pid), _of_new(mode, ctx)
        )
        entry = _entry_attributes(attributes)
        entry.attr_timeout = NEW_TTL_S
        return handle, entry

    @operation("child", undo=_forget)
    def mknod(
        self, parent: InodeNumber, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Create an empty file."""
        if not stat.S_ISREG(mode):
            raise BadArgument(
                "S3 stores only files: no pipes, sockets or devices",
                f"{NO_OPTION}create it elsewhere",
            )
        _check_new()
        handle, created = self._fs.create(parent, name, os.O_WRONLY, 0, _of_new(mode, ctx))
        try:
            self._fs.flush(handle, 0, killed=False)
            self._fs.release(handle)
            return _entry_attributes(self._fs.lookup(parent, name))
        finally:
            self._fs.forget(created.inode, 1)  # the kernel counts the lookup, and no creation

    @operation("inode", undo=_give_up)
    def open(self, inode: InodeNumber, flags: int, ctx: RequestContext) -> HandleNumber:
        """See FileSystem."""
        writes = flags & (os.O_ACCMODE | os.O_TRUNC)
        process = process_of(ctx.pid) if writes else ctx.pid
        before = self._fs.opened_before(request_number()) if is_repeated() else None
        handle = before[0] if before else self._fs.open(inode, flags, process, ctx.pid)
        file = self._fs.file(handle)
        if file.shared or (self._fs.resized and self._fs.was_resized(file)):
            go_direct()
        elif flags & os.O_ACCMODE == os.O_RDWR and not is_wide() and self._fs.has_bytes(handle):
            # With the channel, the kernel refuses to map it for shared writing (`flags_of_open`).
            self._fs.release(handle)
            raise NotPermitted(
                "writes to a mapping of the file would be lost",
                "mount with --staged-writes DIR and --allow-overwrite, or open the file read-only",
            )
        lane = file.lane
        if lane is not None:
            lane.register(handle)
        return handle

    @operation("file")
    def read(self, fh: HandleNumber, off: int, size: int) -> Bytes:
        """See FileSystem. llfuse replies from the buffer's own memory."""
        data = self._fs.read(fh, off, size)
        self._meters.read(len(data))
        return data

    @operation("file")
    def write(self, fh: HandleNumber, off: int, buf: bytes) -> int:
        """See FileSystem. A repeated write goes to the same place, or it would append twice."""
        size = self._fs.write(fh, off, buf, appends=appends() and not is_repeated())
        self._meters.written(size)
        return size

    @operation("file")
    def flush(self, fh: HandleNumber) -> None:
        """See FileSystem."""
        process, killed = who_closes(request_pid())
        self._fs.flush(fh, process, killed=killed)

    @operation("file")
    def fsync(self, fh: HandleNumber, datasync: bool) -> None:
        """See FileSystem."""
        self._fs.fsync(fh)

    @operation("closed")
    def release(self, fh: HandleNumber) -> None:
        """See FileSystem. A repeated request may find that the file was closed."""
        try:
            self._fs.release(fh)
        except BadHandle:
            if not is_repeated():
                raise

    @operation("child")
    def unlink(self, parent: InodeNumber, name: bytes, ctx: RequestContext) -> None:
        """See FileSystem."""
        _check_new()
        self._fs.unlink(parent, name)

    @operation("child")
    def rename(
        self,
        parent: InodeNumber,
        name: bytes,
        new_parent: InodeNumber,
        new_name: bytes,
        ctx: RequestContext,
    ) -> None:
        """See FileSystem."""
        _check_new()
        flags = rename_flags()
        if flags & ~RENAME_NOREPLACE:
            raise BadArgument(
                "two names cannot be exchanged", f"{NO_OPTION}rename them one after the other"
            )
        self._fs.rename(parent, name, new_parent, new_name, replace=not flags)

    @operation("inode")
    def setattr(
        self,
        inode: InodeNumber,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: HandleNumber | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """See FileSystem."""
        attributes = self._fs.set_attributes(
            inode,
            size_bytes=attr.st_size if fields.update_size else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            handle=fh,
            thread=ctx.pid,
        )
        return _entry_attributes(attributes)

    @operation("mount")
    def statfs(self, ctx: RequestContext) -> object:
        """Return a file system of unlimited size."""
        stats = llfuse.StatvfsData()
        stats.f_bsize = stats.f_frsize = ROOM_BLOCK_BYTES
        stats.f_blocks = stats.f_bfree = stats.f_bavail = ROOM_BLOCKS
        stats.f_files = stats.f_ffree = stats.f_favail = ROOM_BLOCKS
        stats.f_namemax = MAX_NAME_BYTES
        return stats

    # Unsupported by S3. Extended attributes and fsync of directories are left to llfuse's
    # defaults: ENOSYS. After that the kernel answers them itself.

    @operation("child")
    def symlink(
        self, parent: InodeNumber, name: bytes, target: bytes, ctx: RequestContext
    ) -> NoReturn:
        """Refuse."""
        raise NotPermitted("S3 has no symbolic links", f"{NO_OPTION}copy its target")

    @operation("inode")
    def link(
        self, inode: InodeNumber, parent: InodeNumber, name: bytes, ctx: RequestContext
    ) -> NoReturn:
        """Refuse."""
        raise NotPermitted("S3 has no hard links", f"{NO_OPTION}copy the file")

    def _fail(self, operation: str, path: str, error: Exception) -> NoReturn:
        """Log one line and raise the FUSEError for `error`."""
        number, level = outcome(error)
        if is_abandoned():
            level = logging.DEBUG
        details: dict[str, Any] = {
            "operation": operation,
            "path": path,
            "errno": errno.errorcode[number],
        }
        if isinstance(error, OperationError):
            details["reason"] = str(error) or type(error).__name__
            if isinstance(error, S3Error):
                details |= {"s3_code": error.code, "s3_status": error.status}
                details["request_id"] = error.request_id
            elif level >= logging.WARNING:
                before = self._throttle.note((operation, path, details["reason"]))
                if before is None:
                    raise llfuse.FUSEError(number) from None
                details["program"], details["pid"] = program_of(request_pid())
                details["times_before"] = before
            if error.hint:
                details["hint"] = error.hint
            details = {key: value for key, value in details.items() if value not in ("", 0)}
            log.log(level, "operation failed", **details)
        else:
            log.log(level, "operation failed: a bug", exc_info=error, **details)
        raise llfuse.FUSEError(number) from None

    def _path(self, subject: str, args: tuple[Any, ...]) -> str:
        if subject == "child":
            return self._fs.path_of(args[0], args[1])
        if subject == "inode":
            return self._fs.path_of(args[0])
        if subject in ("file", "closed", "directory"):
            return self._fs.path_of_handle(args[0], directory=subject == "directory")
        return "/"


def _check_new() -> None:
    """Raise MaybeDone for an operation that would fail if it had been carried out before."""
    if is_repeated():
        raise MaybeDone(
            "mount-s3 died during the operation", "look whether it was carried out, and repeat it"
        )


def _of_new(mode: int, ctx: RequestContext) -> FileAttributes:
    return FileAttributes(stat.S_IMODE(mode), ctx.uid, ctx.gid)


def _entry_attributes(attributes: Attributes) -> EntryAttributes:
    entry: EntryAttributes = llfuse.EntryAttributes()
    entry.st_ino = attributes.inode
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.links
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_size = attributes.size_bytes
    entry.st_blocks = -(-attributes.size_bytes // 512)
    entry.st_blksize = entries.BLOCK_BYTES
    entry.st_atime_ns = attributes.mtime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    entry.entry_timeout = attributes.ttl_s
    entry.attr_timeout = attributes.ttl_s
    return entry


def _no_entry(ttl_s: float) -> EntryAttributes:
    """Return llfuse's answer for a name that does not exist, valid for `ttl_s` seconds."""
    entry: EntryAttributes = llfuse.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = ttl_s
    return entry


def _listed_attributes(entry: DirectoryEntry) -> EntryAttributes:
    attributes: EntryAttributes = llfuse.EntryAttributes()
    attributes.st_ino = entry.inode
    attributes.st_mode = entry.mode
    return attributes
