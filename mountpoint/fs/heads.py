"""One HEAD of one file: what LIST does not tell, and whether a version is the newest.

Attributes are asked for only where they are kept and shown (`setattr`). An answer is as old as the
page that named the file, at most: it is asked for after that, and believed as long. Lookups wait
for their own answers and for nobody else's.
"""

import functools

from mountpoint.errors import NotFound, StaleInode
from mountpoint.fs.inodes import Inode
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.tree import Entry
from mountpoint.s3.client import ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy


class Heads:
    """Asks for what objects' metadata say of files. Thread-safe; its callers wait."""

    def __init__(
        self, client: ObjectClient, retry_policy: RetryPolicy, listings: ListingCache
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._listings = listings

    def described(self, directory: bytes, entry: Entry) -> Entry | None:
        """Return a listed file as HEAD describes it: a newer version, maybe; None if it is gone."""
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
    """Return a file's newest version. Raises StaleInode if that is not the inode's."""
    info = retry_policy.ask(functools.partial(client.head, inode.key)).answer()
    if not inode.is_version(Entry(inode.name, info)):
        raise StaleInode("the object was replaced")
    return info
