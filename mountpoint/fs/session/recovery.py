"""Go on with the kernel's session after another process of this mount has died.

Directories keep their numbers. Files that were open for reading are open again: the same version,
for which the first read sends a request. Listings start anew, and go on at the same position.
Staged files have all that was written. What was being streamed is lost with the process: its
handles fail until they are closed.
"""

from collections.abc import Callable
from typing import NamedTuple, NoReturn

from mountpoint.errors import WriterKilled
from mountpoint.fs.directories import Directories
from mountpoint.fs.handles import DirectoryHandle, HandleNumber, HandleTable, OpenFile
from mountpoint.fs.inodes import ROOT, Inode, InodeNumber, InodeTable
from mountpoint.fs.open import Opener
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.reads.handle import ReadHandle
from mountpoint.fs.session.log import (
    Fields,
    SessionLog,
    bytes_of,
    fields_of,
    json_of,
    quoted,
    text_of,
    version_of,
)
from mountpoint.fs.writes.staged.writer import StagedHandle
from mountpoint.fs.writes.staged.writes import StagedWrites
from mountpoint.native._handles import NativeHandles
from mountpoint.native._lane import Lane
from mountpoint.s3.client import ObjectInfo


class Recovered(NamedTuple):
    """How many directories, open files and listings go on; and how many written files are lost."""

    directories: int
    files: int
    listings: int
    lost: int


class LostHandle:
    """A file that a dead process was writing."""

    shared = True
    lane: Lane | None = None

    def __init__(self, inode: Inode) -> None:
        # dependencies
        self.inode = inode

    def read(self, offset: int, size: int) -> NoReturn:
        """Fail."""
        self._fail()

    def write(self, offset: int, data: bytes, *, appends: bool) -> NoReturn:
        """Fail."""
        self._fail()

    def truncate(self, size_bytes: int) -> NoReturn:
        """Fail."""
        self._fail()

    def flush(self, process: int, *, killed: bool) -> NoReturn:
        """Fail: close(2) tells the program."""
        self._fail()

    def give_up(self, process: int) -> bool:
        """Do nothing: there is no upload."""
        return False

    def fsync(self) -> NoReturn:
        """Fail."""
        self._fail()

    def release(self) -> None:
        """Do nothing: nothing was written."""

    def _fail(self) -> NoReturn:
        raise WriterKilled("mount-s3 was killed while the file was written; write it again")


def note_file(
    log: SessionLog, request: Callable[[], int], number: HandleNumber, handle: OpenFile | None
) -> None:
    """Note the handle of an open file; None: it was closed.

    `request` returns the number of the request that is being served. If the answer to it does not
    reach the kernel, that sends the request again, and knows nothing of the handle.
    """
    if handle is None:
        log.drop("handle", number)
        return
    inode = handle.inode
    parent = inode.parent or inode
    fields: Fields = {
        "inode": inode.number,
        "parent": parent.number,
        "name": text_of(inode.name),
        "request": request(),
    }
    if isinstance(handle, ReadHandle):
        fields |= {"version": fields_of(handle.version), "writer": handle.writer}
    elif isinstance(handle, StagedHandle):
        fields["staged"] = {"opener": handle.opener, "writes": handle.writes}
    log.note("handle", number, fields)


def text_of_reader(inode: Inode, version: ObjectInfo) -> bytes:
    """Return the fields of a handle for reading, as text up to the request (`native._prepared`)."""
    parent = inode.parent or inode
    text = (
        f'{{"inode":{inode.number},"parent":{parent.number},"name":{quoted(text_of(inode.name))},'
        f'"version":{json_of(version)},"writer":null,"request":'
    )
    return text.encode()


def note_listing(
    log: SessionLog,
    request: Callable[[], int],
    number: HandleNumber,
    handle: DirectoryHandle | None,
) -> None:
    """Note the handle of an open directory, as `note_file` does."""
    if handle is None:
        log.drop("listing", number)
        return
    fields = {"inode": handle.inode.number, "process": handle.process, "request": request()}
    log.note("listing", number, fields)


def recover(
    log: SessionLog,
    inodes: InodeTable,
    local: OverlayNames,
    files: HandleTable[OpenFile],
    open_directories: HandleTable[DirectoryHandle],
    opener: Opener,
    directories: Directories,
    staged: StagedWrites | None,
    native_handles: NativeHandles,
) -> Recovered:
    """Restore all that the log has. Sends no request. `staged` None: files are not staged."""
    for prefix in log.records("created"):
        local.add_directory(bytes_of(prefix))
    found = _restore_directories(log.records("directory"), inodes)
    writers = {} if staged is None else staged.recover(log, found)
    restored = {number: writer.inode for number, writer in writers.items()}
    handles: dict[HandleNumber, OpenFile] = {}
    lost = 0
    for number, fields in log.records("handle").items():
        inode_number = InodeNumber(fields["inode"])
        writer = writers.get(inode_number)
        if writer is not None and "staged" in fields:
            inodes.opened(writer.inode)
            handles[HandleNumber(number)] = writer.join_again(**fields["staged"])
            continue
        version = version_of(fields.get("version"))
        inode = restored.get(inode_number)
        if inode is None:
            parent = found.get(fields["parent"], inodes.root)
            inode = inodes.restore_file(inode_number, parent, bytes_of(fields["name"]), version)
            restored[inode_number] = inode
        if version is None:
            inodes.opened(inode)
            handles[HandleNumber(number)] = LostHandle(inode)
            lost += 1
            continue
        handle = opener.restore(inode, version, fields["writer"])
        if handle.lane is not None:
            handle.lane.register(number)
        handles[HandleNumber(number)] = handle
    files.restore(handles, _made_for(log, "handle"))
    native_handles.number_from(max(handles, default=0) + 1)
    listings = {}
    for number, fields in log.records("listing").items():
        directory = found.get(fields["inode"])
        if directory is not None:
            listings[HandleNumber(number)] = directories.open(directory, fields["process"])
    open_directories.restore(listings, _made_for(log, "listing"))
    return Recovered(len(found) - 1, len(handles) - lost, len(listings), lost)


def _made_for(log: SessionLog, kind: str) -> dict[int, HandleNumber]:
    """Return the handles of a kind by the requests for which they were made."""
    records = log.records(kind).items()
    return {fields.get("request", 0): HandleNumber(number) for number, fields in records}


def _restore_directories(records: dict[int, Fields], inodes: InodeTable) -> dict[int, Inode]:
    """Restore directories, those above first; return them by number, with the root."""
    found: dict[int, Inode] = {ROOT: inodes.root}
    for number in records:
        missing: list[int] = []
        above = number
        while above not in found and above in records and above not in missing:
            missing.append(above)
            above = records[above]["parent"]
        parent = found.get(above)
        if parent is None:
            continue  # a directory above was removed
        for each in reversed(missing):
            name = bytes_of(records[each]["name"])
            parent = inodes.restore_directory(InodeNumber(each), parent, name)
            found[each] = parent
    return found
