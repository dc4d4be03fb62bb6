"""What the data caches of a mount lack of files: the answer to the command `cached`.

`mount-s3ctl warm` reads what is missing through the mount, and asks again. The directory is looked
at, and the bucket of a shared cache is asked for each small file of which nothing is known.
"""

import time
from collections.abc import Sequence
from typing import Any

from mountpoint.cache.block_cache import BlockCache
from mountpoint.cache.shared.cache import SharedCache
from mountpoint.errors import MountError, NoSuchEntry, OperationError
from mountpoint.fs.filesystem import FileSystem
from mountpoint.s3.client import ObjectInfo

#: An answer ends after this many seconds, with the paths that it has come to: others wait.
ANSWER_S = 1.0
#: Files of which the bucket is asked at the same time.
ASKED = 32


class CachedFiles:
    """The files of a mount, as its caches have them. Thread-safe."""

    def __init__(
        self, filesystem: FileSystem, cache: BlockCache | None, shared: SharedCache | None
    ) -> None:
        self._filesystem = filesystem
        self._cache = cache
        self._shared = shared

    def answer(self, paths: Sequence[bytes]) -> dict[str, Any]:
        """Return what the caches lack of files, at least of the first, and what is queued.

        `usable`: whether the caches answer at the moment. If they do not, there are no files.
        Raises MountError if there is no cache.
        """
        cache, shared = self._cache, self._shared
        if cache is None and shared is None:
            raise MountError("the mount has no data cache")
        if cache is not None:
            cache.sweep()  # what lanes have fetched is queued, too
        until_s = time.monotonic() + ANSWER_S
        files: list[dict[str, Any]] = []
        usable = self._usable
        while usable and len(files) < len(paths) and (not files or time.monotonic() < until_s):
            found = self._files(paths[len(files) :][: 1 if shared is None else ASKED])
            usable = self._usable
            files += found if usable else []
        return {
            "files": files,
            "usable": usable,
            "queued_bytes": 0 if cache is None else cache.queued_bytes,
            "queue_limit_bytes": 0 if cache is None else cache.queue_bytes,
            "sending_bytes": 0 if shared is None else shared.queued_bytes,
            "sending_limit_bytes": 0 if shared is None else shared.queue_bytes,
        }

    @property
    def _usable(self) -> bool:
        return all(each is None or each.usable for each in (self._cache, self._shared))

    def _files(self, paths: Sequence[bytes]) -> list[dict[str, Any]]:
        """Return the answers for some files."""
        versions = [self._version(path) for path in paths]
        infos = [each for each in versions if isinstance(each, ObjectInfo)]
        lacks = [False] * len(infos) if self._shared is None else self._shared.lacks(infos)
        unsent = {info.key for info, lacking in zip(infos, lacks, strict=True) if lacking}
        return [
            self._file(each, unsent=each.key in unsent)
            if isinstance(each, ObjectInfo)
            else {"error": str(each) or type(each).__name__}
            for each in versions
        ]

    def _file(self, info: ObjectInfo, *, unsent: bool) -> dict[str, Any]:
        """Return the answer for a version, whose block the bucket lacks if `unsent`."""
        size_bytes = info.size_bytes
        whole = [(0, size_bytes)] if size_bytes else []
        if self._cache is not None:
            missing = self._cache.missing(info, 0, size_bytes) if size_bytes else []
        else:
            missing = whole if unsent else []
        found = {"size_bytes": size_bytes, "missing": missing}
        if self._shared is not None:
            found["unsent"] = unsent
            kept = self._cache is not None or not size_bytes or self._shared.takes(info)
            found["too_large"] = not kept
        return found

    def _version(self, path: bytes) -> ObjectInfo | OperationError:
        try:
            return self._filesystem.version(path)
        except NoSuchEntry as error:
            return NoSuchEntry(str(error) or "it does not exist")
        except OperationError as error:
            return error
