"""The attributes that stat(2) shows of files and directories. No I/O.

An object in the bucket has the size and the time that S3 reported for its version. A file that is
being written has its size and time so far. Modes and owners come from the mount's options. Where
attributes are kept in the object's metadata (`setattr`), they replace the mount's mode and owners
and the object's time, as far as the metadata has them. st_ctime is always the object's own time.
"""

import os
import stat
from typing import NamedTuple

from mountpoint.config import FileSystemConfig
from mountpoint.fs.inodes import Inode, InodeNumber
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.posix_metadata import NOTHING


class Attributes(NamedTuple):
    """The attributes that stat(2) shows. The kernel may cache them for `ttl_s` seconds."""

    inode: InodeNumber
    mode: int
    links: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    uid: int
    gid: int
    ttl_s: float

    def allow(self, mask: int, uid: int, gid: int) -> bool:
        """Whether a user may do `mask` (R_OK, W_OK, X_OK)."""
        if uid == 0:
            executable = self.mode & 0o111 or stat.S_ISDIR(self.mode)
            return bool(executable) or not mask & os.X_OK
        shift = 6 if uid == self.uid else 3 if gid == self.gid else 0
        return mask & (self.mode >> shift) == mask


class AttributeView:
    """Builds the attributes of a mount's inodes. Thread-safe.

    `renew_before_s`: a file's attributes expire in the kernel this much before they expire here, so
    that they can be renewed in time. Directories have the time of the mount. `keeps`: show the
    attributes that are kept in objects' metadata.
    """

    def __init__(
        self,
        config: FileSystemConfig,
        local: OverlayNames,
        *,
        keeps: bool,
        renew_before_s: float,
        mounted_at_ns: int,
    ) -> None:
        # dependencies
        self._local = local
        # constants
        self._config = config
        self._keeps = keeps
        self._renew_before_s = renew_before_s
        self._mounted_at_ns = mounted_at_ns

    def attributes(self, inode: Inode, left_s: float) -> Attributes:
        """Return the attributes of an inode that stay valid for `left_s` seconds."""
        config = self._config
        ttl_s = config.ttl_s if left_s > config.ttl_s else left_s if left_s > 0 else 0.0
        stored = inode.stored
        if stored is None:
            return Attributes(
                inode=inode.number,
                mode=stat.S_IFDIR | config.dir_mode,
                links=2,
                size_bytes=0,
                mtime_ns=self._mounted_at_ns,
                ctime_ns=self._mounted_at_ns,
                uid=config.uid,
                gid=config.gid,
                ttl_s=ttl_s,
            )
        size_bytes, ctime_ns, kept = stored
        writer = self._local.writer(inode)
        if writer is not None:
            size_bytes, ctime_ns, kept = writer.size_bytes, writer.mtime_ns, writer.kept
        if not self._keeps:
            kept = NOTHING
        # A writer's time is the one that was set last.
        mtime_ns = ctime_ns if writer is not None or kept.mtime_ns is None else kept.mtime_ns
        return Attributes(
            inode=inode.number,
            mode=stat.S_IFREG | (config.file_mode if kept.mode is None else kept.mode),
            links=0 if writer is not None and writer.removed else 1,
            size_bytes=size_bytes,
            mtime_ns=mtime_ns,
            ctime_ns=ctime_ns,
            uid=config.uid if kept.uid is None else kept.uid,
            gid=config.gid if kept.gid is None else kept.gid,
            ttl_s=ttl_s - (self._renew_before_s if ttl_s > self._renew_before_s else 0.0),
        )
