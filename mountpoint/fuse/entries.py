"""Entries of a listing with attributes, as the kernel reads them (READDIRPLUS)."""

import struct

from mountpoint.fs.attributes import Attributes

#: st_blksize: the size in which programs read and write.
BLOCK_BYTES = 4096
NS = 1_000_000_000

#: struct fuse_entry_out of linux/fuse.h: inode, generation, seconds for which name and attributes
#: are valid, their nanoseconds, and struct fuse_attr.
_ENTRY_OUT = struct.Struct("<QQQQIIQQQqqqIIIIIIIIII")
#: A name that the kernel must look up.
UNKNOWN = bytes(_ENTRY_OUT.size)
#: The bytes of an entry without its name: that, and struct fuse_dirent.
_FIXED_BYTES = _ENTRY_OUT.size + 24
#: No entry is smaller.
MIN_BYTES = _FIXED_BYTES + 8


def size_of(name: bytes) -> int:
    """Return the bytes of an entry with this name."""
    return _FIXED_BYTES + -(-len(name) // 8) * 8


def entry_out(attributes: Attributes) -> bytes:
    """Return what an answer to LOOKUP would say of an inode."""
    valid_s, valid_ns = divmod(round(attributes.ttl_s * 1e9), NS)
    mtime_s, mtime_ns = divmod(attributes.mtime_ns, NS)
    ctime_s, ctime_ns = divmod(attributes.ctime_ns, NS)
    return _ENTRY_OUT.pack(
        attributes.inode,
        0,
        valid_s,
        valid_s,
        valid_ns,
        valid_ns,
        attributes.inode,
        attributes.size_bytes,
        -(-attributes.size_bytes // 512),
        mtime_s,
        mtime_s,
        ctime_s,
        mtime_ns,
        mtime_ns,
        ctime_ns,
        attributes.mode,
        attributes.links,
        attributes.uid,
        attributes.gid,
        0,
        BLOCK_BYTES,
        0,
    )
