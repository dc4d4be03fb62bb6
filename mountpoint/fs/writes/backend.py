"""The interface of the two writing back ends for the file system.

`StreamedWrites` and `StagedWrites` are the two. A mount has one of them. Files that are being
written have a `Writer` (`overlay`), and each open of one an `OpenFile` (`handles`).
"""

from typing import Protocol

from mountpoint.fs.handles import OpenFile
from mountpoint.fs.inodes import Inode
from mountpoint.fs.posix_metadata import FileAttributes
from mountpoint.s3.client import ObjectInfo


class WriteBackend(Protocol):
    """Opens the files of a mount to change them. Errors are domain errors and S3Errors."""

    def create(
        self, parent: Inode, name: bytes, flags: int, process: int, attributes: FileAttributes
    ) -> OpenFile:
        """Create a file. Its inode counts one lookup and one open."""

    def open(self, inode: Inode, flags: int, process: int) -> OpenFile | None:
        """Open a file that is to be changed, or is being changed; None: it is only read."""

    def is_written(self, inode: Inode) -> bool:
        """Whether an inode is open for writing."""

    def take_over(self, inode: Inode, process: int | None, offset: int | None) -> OpenFile:
        """Open a file for writing at `offset`; `process` has opened it with O_RDWR for reading.

        `process` None: it was opened only for reading. `offset` None: truncate the file to zero
        bytes.
        """

    def truncate(self, inode: Inode, size_bytes: int) -> None:
        """Give a file another size, by its name."""

    def set_attributes(self, inode: Inode, attributes: FileAttributes) -> None:
        """Set mode, owners or time of an existing file or directory."""

    def object_moved(self, source: ObjectInfo, copy: ObjectInfo) -> None:
        """Make an open file follow its object, which a rename has moved."""

    def object_deleted(self, key: bytes) -> None:
        """Let the handles of a file whose object was deleted go on."""
