"""Attributes that programs set: refuse them, ignore them, or keep them in the object's metadata.

A file that is being written always accepts new attributes: programs that write files often set
modes and times without need. If attributes are kept, they go with the file's upload. That is free
until the upload's first request is sent. A file of one part sends it at the end; so does a staged
file. Later changes make the server copy the object, once it is complete.

Each change of an existing object makes the server copy it. Directories are not objects, so their
attributes are not kept.

The time of a file is kept if it was set, or if keeping it costs no extra request. Then it is the
time of the last write, and stays when the object is copied. Otherwise it is the object's own time.
"""

from collections.abc import Callable
from dataclasses import replace

from mountpoint.config import ChangeConfig
from mountpoint.copy.metadata import SelfCopies, check_size
from mountpoint.errors import NotFound, NotPermitted, PreconditionFailed, StaleInode
from mountpoint.fs.handles import StagedWriter, WriteHandle
from mountpoint.fs.inodes import Inode, InodeTable
from mountpoint.fs.posix_metadata import (
    NOTHING,
    FileAttributes,
    added,
    formatted,
    parsed,
    replaced,
)
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectInfo, PutOptions
from mountpoint.upload.sequential import Sequential


class AttributeStore:
    """Handles the attributes that programs set in one mount. Thread-safe; no lock is held.

    `changed` is called after S3 has made a change, with the directory, the name, and the new
    object (None: there is none).
    """

    def __init__(
        self,
        copies: SelfCopies,
        inodes: InodeTable,
        config: ChangeConfig,
        changed: Callable[[bytes, bytes, ObjectInfo | None], None],
    ) -> None:
        # dependencies
        self._copies = copies
        self._inodes = inodes
        self._changed = changed
        # constants
        self._how = config.attributes

    @property
    def keeps(self) -> bool:
        """Whether attributes are kept and shown."""
        return self._how == "keep"

    # --- files that are being written: their first attributes ---

    def of_new(self, attributes: FileAttributes) -> FileAttributes:
        """Return the attributes to keep of a new file."""
        return attributes if self.keeps else NOTHING

    def of_replaced(self, inode: Inode) -> FileAttributes:
        """Return the attributes to keep of a file that is replaced: all but its time."""
        return NOTHING if inode.info is None else replace(self.of_base(inode.info), mtime_ns=None)

    def of_base(self, base: ObjectInfo) -> FileAttributes:
        """Return the attributes to keep of a file that is changed. `base` comes from HEAD."""
        return parsed(base.metadata) if self.keeps else NOTHING

    def on_base(
        self, writer: WriteHandle | StagedWriter, options: PutOptions, mtime_ns: int | None
    ) -> tuple[PutOptions, FileAttributes]:
        """Return the upload options of a file's next version, and the attributes that it keeps:
        those set here since, and for the rest those of the last version, except its time."""
        if not self.keeps:
            return options, NOTHING
        there = parsed(options.metadata)
        with writer.settling:
            writer.kept = there.updated(_since(writer.told, writer.kept))
            told = replace(writer.kept, mtime_ns=mtime_ns)
        return replace(options, metadata=replaced(options.metadata, told)), told

    # --- files that are being written: until their end ---

    def note(self, handle: WriteHandle, attributes: FileAttributes) -> None:
        """Take new attributes of a file that is being written (its lock held).

        Raises NotPermitted if they can no longer be kept.
        """
        if self.keeps:
            noted = handle.kept.updated(attributes)
            timeless = replace(noted, mtime_ns=None)  # its time may change: writing may go on
            if handle.upload is not None and handle.upload.describe(formatted(timeless)):
                handle.told = timeless
            else:
                check_size(handle.size_bytes)
            handle.kept = noted
        if attributes.mtime_ns is not None:
            handle.mtime_ns = attributes.mtime_ns

    def finishing(self, handle: WriteHandle, upload: Sequential) -> None:
        """Send a file's attributes with its upload if that is still possible."""
        if not self.keeps:
            return
        with handle.settling:
            noted = replace(handle.kept, mtime_ns=handle.mtime_ns)
            if upload is handle.upload and upload.describe(formatted(noted)):
                handle.told = noted

    def left(self, handle: WriteHandle) -> FileAttributes | None:
        """Return the attributes that a complete upload has yet to get; None: none are left."""
        wanted = handle.kept
        if wanted.mtime_ns != handle.mtime_ns:  # something was written after it was set
            wanted = replace(wanted, mtime_ns=None)
        return wanted if self._is_more(handle.told, wanted) else None

    def finished(self, handle: WriteHandle, info: ObjectInfo) -> ObjectInfo:
        """Give the object the attributes that did not go with its upload; return the new object.

        This is tried once, whatever it raises: the object itself is complete.
        """
        wanted = self.left(handle)
        if wanted is None:
            return info
        handle.told = handle.told.updated(wanted)
        return self._add(info, wanted)

    # --- files that are staged ---

    def note_staged(self, writer: StagedWriter, attributes: FileAttributes) -> None:
        """Take new attributes of a staged file. Raises NotPermitted if they cannot be kept."""
        if self.keeps:
            check_size(0 if writer.file.dirty else writer.size_bytes)
            with writer.settling:
                writer.kept = writer.kept.updated(replace(attributes, mtime_ns=None))
                writer.tried = None
        if attributes.mtime_ns is not None:
            writer.set_ns = attributes.mtime_ns

    def of_staged(self, kept: FileAttributes) -> FileAttributes | None:
        """Return the attributes that a staged file starts with; None: attributes are never kept."""
        return kept if self.keeps else None

    def metadata(self, writer: StagedWriter) -> dict[str, str]:
        """Return the metadata of the first version of a staged file."""
        if not self.keeps:
            return {}
        return formatted(replace(writer.kept, mtime_ns=writer.mtime_ns))

    def is_left(self, writer: StagedWriter) -> bool:
        """Whether the object of a staged file has yet to get attributes."""
        wanted = replace(writer.kept, mtime_ns=writer.set_ns)
        if writer.file.base is None or writer.file.unlinked or wanted == writer.tried:
            return False
        return self._is_more(writer.told, wanted)

    def finish_staged(self, writer: StagedWriter) -> ObjectInfo | None:
        """Give a staged file's object the attributes that were set since its upload.

        Returns the object, or None if nothing has changed. This is tried once, whatever it raises:
        the object itself is complete, and some stores do not return the metadata that they were
        given.
        """
        wanted = replace(writer.kept, mtime_ns=writer.set_ns)
        if not self.is_left(writer):
            return None
        writer.tried = wanted
        writer.file.move(writer.file.key, lambda base: self._add(base, wanted))
        return writer.file.base

    # --- objects that exist ---

    def set(
        self, inode: Inode, attributes: FileAttributes, handle: WriteHandle | None = None
    ) -> None:
        """Set attributes of an object or directory. `handle`: a writer that may write it later.

        Raises NotPermitted, StaleInode when the object was replaced, and what `SelfCopies` raises.
        """
        if self._how == "refuse":
            raise NotPermitted(
                "attributes cannot be changed",
                "mount with --attributes keep to keep them in the object's metadata, or with "
                "--attributes ignore to continue without them",
            )
        info = inode.info
        base = handle.base if handle is not None and handle.inode is inode else None
        if base is not None and not inode.is_version(Entry(inode.name, base)):
            info = base
        if info is None:
            return
        told = None if info.metadata is None else parsed(info.metadata)
        if not self._is_more(told, attributes):
            return
        try:
            become = self._add(info, attributes)
        except (PreconditionFailed, NotFound):
            self._changed(inode.directory, inode.name, None)
            inode.fresh_until_s = 0.0
            raise StaleInode("the object was replaced") from None
        self._changed(inode.directory, inode.name, become)
        if inode.is_version(Entry(inode.name, info)):
            self._inodes.became(inode, become, 0.0, paged=inode.paged)
        else:  # it was written again: the kernel may have pages of the earlier content
            self._inodes.disown(inode, become)
        if handle is not None and handle.base is not None and handle.base.etag == info.etag:
            handle.became(become)

    def _add(self, info: ObjectInfo, attributes: FileAttributes) -> ObjectInfo:
        """Add attributes to those that an object keeps; return the new object."""
        return self._copies.change(info, lambda metadata: added(metadata, attributes))

    def _is_more(self, told: FileAttributes | None, wanted: FileAttributes) -> bool:
        """Whether an object that has the attributes `told` needs others."""
        if not self.keeps or wanted == NOTHING:
            return False
        return told is None or told.updated(wanted) != told


def _since(told: FileAttributes, kept: FileAttributes) -> FileAttributes:
    """Return the attributes of `kept` that differ from `told`."""
    return FileAttributes(
        None if kept.mode == told.mode else kept.mode,
        None if kept.uid == told.uid else kept.uid,
        None if kept.gid == told.gid else kept.gid,
        None if kept.mtime_ns == told.mtime_ns else kept.mtime_ns,
    )
