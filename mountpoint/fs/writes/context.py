"""The parts of a mount that changes of its files need."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from mountpoint.config import ChangeConfig
from mountpoint.copy.objects import Copies
from mountpoint.errors import NotPermitted
from mountpoint.fs.caches import Caches
from mountpoint.fs.inodes import Inode, InodeTable
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.resolver import newest
from mountpoint.fs.session.log import SessionLog
from mountpoint.fs.setattr import AttributeStore
from mountpoint.fs.writes.key_locks import KeyLocks
from mountpoint.fs.writes.readers import Readers
from mountpoint.s3.client import ALWAYS, Condition, ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.source import fetch
from mountpoint.upload.uploads import Uploads


@dataclass(frozen=True, slots=True)
class WriteContext:
    """The parts of one mount that changes of its files need, and their common requests."""

    client: ObjectClient
    retry_policy: RetryPolicy
    config: ChangeConfig
    uploads: Uploads
    copies: Copies
    key_locks: KeyLocks
    inodes: InodeTable
    local: OverlayNames
    readers: Readers
    attribute_store: AttributeStore
    caches: Caches
    session: SessionLog | None = None
    #: Whether the program still waits for the answer to the request that this thread serves. If so,
    #: it waits until the request is answered (`fuse/_callers`).
    claim: Callable[[], bool] = lambda: True

    def newest(self, inode: Inode) -> ObjectInfo:
        """Return the newest version of a file. Raises StaleInode if the inode is another one."""
        return newest(self.client, self.retry_policy, inode)

    def newest_of(self, key: bytes) -> ObjectInfo:
        """Return the newest object of a key. Raises S3Errors."""
        return self.retry_policy.ask(functools.partial(self.client.head, key)).answer()

    def fetch(self, info: ObjectInfo, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of a version. Raises PreconditionFailed for another."""
        return self.retry_policy.ask(
            functools.partial(fetch, self.client, info, start, stop)
        ).answer()

    def delete(self, key: bytes) -> None:
        """Delete an object. Raises S3Errors."""
        self.retry_policy.ask(functools.partial(self.client.delete_object, key)).answer()

    def check_may_delete(self) -> None:
        """Raise NotPermitted if files may not be deleted."""
        if not self.config.allow_delete:
            raise NotPermitted(
                "deleting files is not permitted", "mount with --allow-delete to permit it"
            )


def unchanged(info: ObjectInfo) -> Condition:
    """Return the condition that the object is still this version."""
    return Condition(etag=info.etag) if info.etag else ALWAYS
