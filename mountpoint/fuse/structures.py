"""The structures of llfuse that operations take and return. llfuse itself has no types."""

from typing import Protocol


class RequestContext(Protocol):
    """The sender of a request: a thread, and its user and group."""

    pid: int
    uid: int
    gid: int


class EntryAttributes(Protocol):
    """The attributes of an inode, and for how long the kernel may cache them."""

    st_ino: int
    st_mode: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_blocks: int
    st_blksize: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int
    entry_timeout: float
    attr_timeout: float


class SetattrFields(Protocol):
    """Which attributes a setattr request sets."""

    update_size: bool
    update_mtime: bool
    update_mode: bool
    update_uid: bool
    update_gid: bool
