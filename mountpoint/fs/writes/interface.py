"""What the file system asks of the files that are being written, streamed or staged.

`StreamedWrites` and `StagedWrites` each have handles and writers of their own kind. A mount has one
of the two, so all open files and all writers of the mount are of that kind.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from mountpoint.fs.handles import ReadHandle, StagedHandle, StreamedHandle
from mountpoint.fs.inodes import Inode
from mountpoint.fs.overlay import Writer
from mountpoint.fs.posix_metadata import FileAttributes
from mountpoint.s3.client import Condition, ObjectInfo

#: An open file that is written, and what all that have the same file open share.
H = TypeVar("H")
W = TypeVar("W", contravariant=True)

#: The handle of either kind.
WrittenHandle = StreamedHandle | StagedHandle


class Writing(Protocol[H, W]):
    """The files of a mount that are being written. Errors are domain errors and S3Errors."""

    # --- open files ---

    def create(
        self,
        parent: Inode,
        name: bytes,
        flags: int,
        process: int,
        attributes: FileAttributes = ...,
        /,
    ) -> H:
        """Begin a new file. Its inode counts one lookup and one open."""

    def open(self, inode: Inode, flags: int, process: int, /) -> H | None:
        """Open a file to write it, or one that is being written; None: it is only to be read."""

    def is_written(self, inode: Inode, /) -> bool:
        """Whether an inode is open for somebody who may write it."""

    def take_over(self, reading: ReadHandle, offset: int | None, /) -> H:
        """Let a file be written that was opened for reading."""

    def read(self, opened: H, offset: int, size: int, /) -> bytes:
        """Return the bytes [offset, offset + size), fewer only at the end of the file."""

    def write(self, opened: H, offset: int, data: bytes, /) -> int:
        """Take bytes of a file; return how many."""

    def flush(self, opened: H, process: int, /, *, killed: bool) -> None:
        """Note that a process closes a descriptor, by itself or because it was killed."""

    def sync(self, opened: H, /) -> None:
        """Have all in S3 that was written."""

    def release(self, opened: H, /) -> None:
        """Close a file."""

    def truncate(self, inode: Inode, size_bytes: int, opened: H | None = ..., /) -> None:
        """Cut a file off, or continue it with zeros: by its name, or through an open file."""

    # --- names and attributes of files that are open ---

    def set_open(self, writer: W, attributes: FileAttributes, /) -> bool:
        """Set attributes of a file that is being written; False: it is there now."""

    def unlink_open(self, writer: W, /) -> bool:
        """Remove a file that is being written; False: it is there now."""

    def await_end(self, writer: W, /, *, replaced: bool) -> None:
        """Wait for a file that is closed now, if it has to be there before it is renamed."""

    def displace(self, writer: W, move: Callable[[], None], /) -> None:
        """Have `move` give another file the name of one that is being written."""

    def rename_open(self, writer: W, parent: Inode, name: bytes, condition: Condition, /) -> bool:
        """Rename a file that is being written; False: it is there now."""

    def check_movable(self, writer: W, /) -> None:
        """Raise NotPermitted if a file is written in a way that its directory has to stay."""

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo, /) -> None:
        """Note that an object has moved, alone or with its directory: that may fail for others."""

    def moved(self, writer: W, /) -> None:
        """Take what a renamed directory has made of the name of a file that is being written."""


def of_a_mount(writing: Writing[H, W]) -> Writing[WrittenHandle, Writer]:
    """Return it for handles and writers of either kind: those of its mount are of its own kind."""
    return cast("Writing[WrittenHandle, Writer]", writing)
