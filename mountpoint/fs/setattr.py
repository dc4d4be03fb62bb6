"""Attributes that programs set: refuse them, ignore them, or keep them in the object's metadata.

A file that is being written always accepts new attributes: programs that write files often set
modes and times without need. If attributes are kept, they go with the file's upload. That is free
until the upload's first request is sent. A file of one part sends it at the end; so does a staged
file. Later changes make the server copy the object, once it is complete.

Each change of an existing object makes the server copy it. Directories are not objects, so their
attributes are not kept.

The time of a file is kept if it was set, or if keeping it costs no extra request. Then it is the
time of the last write, and stays when the object is copied. Otherwise it is the object's own time.

Not known here: the attributes of a file until its upload ends (its `Writer`).
"""

from dataclasses import replace

from mountpoint.config import ChangeConfig
from mountpoint.copy.metadata import SelfCopies
from mountpoint.errors import NotFound, NotPermitted, PreconditionFailed, StaleInode
from mountpoint.fs.caches import Caches
from mountpoint.fs.inodes import Inode, InodeTable
from mountpoint.fs.posix_metadata import (
    NOTHING,
    FileAttributes,
    added,
    parsed,
    replaced,
)
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectInfo, PutOptions


class AttributeStore:
    """Handles the attributes that programs set in one mount. Thread-safe; no lock is held."""

    def __init__(
        self, copies: SelfCopies, inodes: InodeTable, caches: Caches, config: ChangeConfig
    ) -> None:
        # dependencies
        self._copies = copies
        self._inodes = inodes
        self._caches = caches
        # constants
        self._how = config.attributes
        self.keeps = config.keeps_attributes

    # --- files that are being written ---

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
        self,
        options: PutOptions,
        stored: FileAttributes,
        kept: FileAttributes,
        mtime_ns: int | None,
    ) -> tuple[PutOptions, FileAttributes, FileAttributes]:
        """Return the upload options of a file's next version, and what it has and keeps then.

        The last version has `options` and the attributes `stored`. Those of `kept` that differ from
        `stored` were set here since. The others are the last version's, except its time.
        """
        if not self.keeps:
            return options, NOTHING, kept
        kept = parsed(options.metadata).updated(_since(stored, kept))
        stored = replace(kept, mtime_ns=mtime_ns)
        return replace(options, metadata=replaced(options.metadata, stored)), stored, kept

    def is_more(self, stored: FileAttributes | None, wanted: FileAttributes) -> bool:
        """Whether an object that has the attributes `stored` needs others."""
        if not self.keeps or wanted == NOTHING:
            return False
        return stored is None or stored.updated(wanted) != stored

    def keep(self, info: ObjectInfo, wanted: FileAttributes) -> ObjectInfo:
        """Add attributes to those that an object keeps; return the new object. See SelfCopies."""
        return self._copies.change(info, lambda metadata: added(metadata, wanted))

    # --- objects that exist ---

    def set(
        self, inode: Inode, attributes: FileAttributes, base: ObjectInfo | None = None
    ) -> tuple[ObjectInfo, ObjectInfo] | None:
        """Set attributes of an object or directory; return the old and the new object.

        Returns None if nothing has to change. `base`: the object, if it was written through this
        inode. Raises NotPermitted, StaleInode when the object was replaced, and what `SelfCopies`
        raises.
        """
        if self._how == "refuse":
            raise NotPermitted(
                "attributes cannot be changed",
                "mount with --attributes keep to keep them in the object's metadata, or with "
                "--attributes ignore to continue without them",
            )
        info = inode.info
        if base is not None and not inode.is_version(Entry(inode.name, base)):
            info = base
        if info is None:
            return None
        stored = None if info.metadata is None else parsed(info.metadata)
        if not self.is_more(stored, attributes):
            return None
        try:
            become = self.keep(info, attributes)
        except (PreconditionFailed, NotFound):
            self._caches.changed(inode.directory, inode.name, None)
            inode.fresh_until_s = 0.0
            raise StaleInode("the object was replaced") from None
        self._caches.changed(inode.directory, inode.name, become)
        if inode.is_version(Entry(inode.name, info)):
            self._inodes.became(inode, become, 0.0, paged=inode.paged)
        else:  # it was written again: the kernel may have pages of the earlier content
            self._inodes.disown(inode, become)
        return info, become


def _since(stored: FileAttributes, kept: FileAttributes) -> FileAttributes:
    """Return the attributes of `kept` that differ from `stored`."""
    return FileAttributes(
        None if kept.mode == stored.mode else kept.mode,
        None if kept.uid == stored.uid else kept.uid,
        None if kept.gid == stored.gid else kept.gid,
        None if kept.mtime_ns == stored.mtime_ns else kept.mtime_ns,
    )
