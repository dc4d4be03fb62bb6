"""Create and remove directories.

S3 has no directories: one exists as long as a key is below it. So a new directory exists in this
mount alone (`overlay`), unless a marker keeps it (--keep-directories): an empty object whose key
ends in "/".
"""

import functools
from collections.abc import Callable

from mountpoint.config import ChangeConfig
from mountpoint.errors import DirectoryNotEmpty, NotADirectory, NotPermitted, Stalled
from mountpoint.fs.inodes import Inode
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.writes.key_locks import KeyLocks
from mountpoint.listing.tree import Entry, check_new
from mountpoint.s3.client import NEW, ObjectClient, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.uploads import Uploads


class Directories:
    """Creates and removes the directories of one mount. Thread-safe; no lock is held while waiting.

    `changed` is called after S3 has made a change, with the directory, the name, and the new
    object (None: there is none).
    """

    def __init__(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        key_locks: KeyLocks,
        uploads: Uploads,
        local: OverlayNames,
        config: ChangeConfig,
        changed: Callable[[bytes, bytes, ObjectInfo | None], None],
    ) -> None:
        # dependencies
        self._client = client
        self._retry_policy = retry_policy
        self._key_locks = key_locks
        self._uploads = uploads
        self._local = local
        self._changed = changed
        # constants
        self._markers = config.keep_directories

    def make(self, parent: Inode, name: bytes) -> Entry:
        """Create a directory. Raises NameTooLong, BadArgument, and S3Errors."""
        check_new(parent.key, name + b"/")
        with self._key_locks.shared(lambda: parent.key + name + b"/"):
            prefix = parent.key + name + b"/"
            if self._markers:
                marker = self._uploads.upload(prefix, condition=NEW)
                try:
                    marker.finish()
                finally:
                    marker.abort()
                self._changed(parent.key, name, None)
            self._local.keep(prefix)
        return Entry(name, None)

    def remove(self, parent: Inode, entry: Entry) -> None:
        """Remove an empty directory. Raises NotADirectory, and what `check_replaceable` does."""
        if not entry.is_directory:
            raise NotADirectory()
        with self._key_locks.shared(lambda: parent.key + entry.name + b"/"):
            prefix = parent.key + entry.name + b"/"
            if self.check_replaceable(prefix):
                self._retry_policy.ask(lambda: self._client.delete_object(prefix)).answer()
            self._local.drop(prefix)
            self._local.keep(parent.key)
            self._changed(parent.key, entry.name, None)

    def check_replaceable(self, prefix: bytes) -> bool:
        """Return whether the directory has a marker.

        Raises DirectoryNotEmpty if anything is below it, and NotPermitted if it has a marker that
        this mount may not delete.
        """
        marker = self._check_empty(prefix)
        if marker and not self._markers:
            raise NotPermitted(
                "the bucket has a marker object for this directory",
                "mount with --keep-directories to permit it",
            )
        return marker

    def _check_empty(self, prefix: bytes) -> bool:
        if not self._local.is_empty(prefix):
            raise DirectoryNotEmpty()
        keys = self._keys_below(prefix)
        if any(key != prefix for key in keys):
            raise DirectoryNotEmpty()
        return bool(keys)

    def _keys_below(self, prefix: bytes) -> list[bytes]:
        """Return the first keys below a directory, its marker included. Two keys are enough."""
        attempts = self._retry_policy.begin()
        keys: list[bytes] = []
        token = None
        while True:
            asked = functools.partial(self._client.list, prefix, token=token, max_keys=2, flat=True)
            page = self._retry_policy.ask(asked, attempts).answer()
            keys += [info.key for info in page.objects]
            token = page.next_token
            if len(keys) > 1 or token is None:
                return keys
            if attempts.left_s() <= 0:
                raise Stalled("the listing has only empty pages")
