"""What stat(2) shows of files and directories. No I/O.

Of a file in the bucket that is what S3 said of its version; of one that is being written, how far
that is. Modes and owners are the mount's. Where attributes are kept (`setattr`) they are the
file's, and so is its time, as far as the object tells them; st_ctime is the object's time.
"""

import stat
from dataclasses import dataclass

from mountpoint.config import FileSystemConfig
from mountpoint.fs.inodes import Inode, InodeNumber
from mountpoint.fs.overlay import OverlayNames
from mountpoint.s3.wire.posix_metadata import NOTHING


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows. `ttl_s` is how long the kernel may believe it."""

    inode: InodeNumber
    mode: int
    links: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    uid: int
    gid: int
    ttl_s: float


class AttributeView:
    """Makes the attributes of a mount's inodes. Thread-safe.

    The kernel is to ask for a file that is in use `ahead_s` before what it knows is too old, when
    it can be renewed. Directories are as old as the mount. `keeps`: kept attributes are shown.
    """

    def __init__(
        self,
        config: FileSystemConfig,
        local: OverlayNames,
        *,
        keeps: bool,
        ahead_s: float,
        mounted_at_ns: int,
    ) -> None:
        # dependencies
        self._local = local
        # constants
        self._config = config
        self._keeps = keeps
        self._ahead_s = ahead_s
        self._mounted_at_ns = mounted_at_ns

    def attributes(self, inode: Inode, left_s: float) -> Attributes:
        """Return the attributes of an inode that may be believed for `left_s`."""
        config = self._config
        ttl_s = min(max(left_s, 0.0), config.ttl_s)
        info = inode.info
        if info is None:
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
        size_bytes, mtime_ns, kept = info.size_bytes, info.mtime_ns, info.attributes
        writer = self._local.writer(inode)
        if writer is not None:
            size_bytes, mtime_ns, kept = writer.size_bytes, writer.mtime_ns, writer.kept
        if kept is None or not self._keeps:
            kept = NOTHING
        if writer is None and kept.mtime_ns is not None:
            mtime_ns = kept.mtime_ns
        return Attributes(
            inode=inode.number,
            mode=stat.S_IFREG | (config.file_mode if kept.mode is None else kept.mode),
            links=0 if writer is not None and writer.removed else 1,
            size_bytes=size_bytes,
            mtime_ns=mtime_ns,
            ctime_ns=mtime_ns if writer is not None else info.mtime_ns,
            uid=config.uid if kept.uid is None else kept.uid,
            gid=config.gid if kept.gid is None else kept.gid,
            ttl_s=ttl_s - (self._ahead_s if ttl_s > self._ahead_s else 0.0),
        )
