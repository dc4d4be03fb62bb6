"""HEAD requests for one file: its metadata, and whether a version is the newest.

LIST does not return metadata. Lookups send a HEAD only where attributes are kept and shown
(`setattr`). The answer is newer than the listing that named the file and expires with it. A lookup
waits for its own answer only.
"""

import functools

from mountpoint.errors import NotFound, StaleInode
from mountpoint.fs.inodes import Inode
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy


class Heads:
    """Sends HEAD requests to learn files' metadata. Thread-safe; its callers wait."""

    def __init__(
        self, client: ObjectClient, retry_policy: RetryPolicy, listings: ListingCache
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._listings = listings

    def described(self, directory: bytes, entry: Entry) -> Entry | None:
        """Return a listed file as HEAD describes it, which may be a newer version.

        Returns None if the object is gone. Raises S3Errors.
        """
        listed = entry.info
        assert listed is not None
        start = functools.partial(self._client.head, listed.key)
        try:
            info = self._retry_policy.ask(start).answer()
        except NotFound:
            self._listings.discard(directory, entry.name)
            return None
        if (info.etag, info.size_bytes) != (listed.etag, listed.size_bytes):
            self._listings.discard(directory, entry.name)
        return Entry(entry.name, info)


def newest(client: ObjectClient, retry_policy: RetryPolicy, inode: Inode) -> ObjectInfo:
    """Return the newest version of a file. Raises StaleInode if the inode is another version."""
    info = retry_policy.ask(functools.partial(client.head, inode.key)).answer()
    if not inode.is_version(Entry(inode.name, info)):
        raise StaleInode("the object was replaced")
    return info
