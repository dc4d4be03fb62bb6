"""What stat(2) shows of files and directories. No I/O.

Of a file in the bucket that is what S3 said of its version; of one that is being written, how far
that is. Modes and owners are the mount's.
"""

import stat
from dataclasses import dataclass

from mountpoint.config import FileSystemConfig
from mountpoint.inodes import Inode, InodeNumber
from mountpoint.local import LocalNames


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows. `ttl_s` is how long the kernel may believe it."""

    inode: InodeNumber
    mode: int
    links: int
    size_bytes: int
    mtime_ns: int
    uid: int
    gid: int
    ttl_s: float


class Showing:
    """Makes the attributes of a mount's inodes. Thread-safe.

    The kernel is to ask for a file that is in use `ahead_s` before what it knows is too old, when
    it can be renewed. Directories are as old as the mount.
    """

    def __init__(
        self, config: FileSystemConfig, local: LocalNames, *, ahead_s: float, mounted_at_ns: int
    ) -> None:
        # dependencies
        self._local = local
        # constants
        self._config = config
        self._ahead_s = ahead_s
        self._mounted_at_ns = mounted_at_ns

    def attributes(self, inode: Inode, left_s: float) -> Attributes:
        """Return the attributes of an inode that may be believed for `left_s`."""
        ttl_s = min(max(left_s, 0.0), self._config.ttl_s)
        info = inode.info
        if info is None:
            kind, links = stat.S_IFDIR | self._config.dir_mode, 2
            size_bytes, mtime_ns = 0, self._mounted_at_ns
        else:
            kind, links = stat.S_IFREG | self._config.file_mode, 1
            size_bytes, mtime_ns = info.size_bytes, info.mtime_ns
            writer = self._local.writer(inode)
            if writer is not None:
                size_bytes, mtime_ns = writer.size_bytes, writer.mtime_ns
            ttl_s -= self._ahead_s if ttl_s > self._ahead_s else 0.0
        return Attributes(
            inode=inode.number,
            mode=kind,
            links=links,
            size_bytes=size_bytes,
            mtime_ns=mtime_ns,
            uid=self._config.uid,
            gid=self._config.gid,
            ttl_s=ttl_s,
        )
