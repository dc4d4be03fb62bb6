"""Find the files of a mount that paths, patterns and lists name.

A directory stands for all files below it. A file is found once, however often it is named.
"""

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from mountpoint.ctl import mounts
from mountpoint.ctl.mounts import Mount
from mountpoint.errors import MountError

#: Called with a path and the reason why it cannot be warmed.
Failed = Callable[[str, str], None]


class Share(NamedTuple):
    """One of `shares` parts of all files, from 1. Paths decide, so each machine finds the same."""

    number: int
    shares: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Return the share that `K/N` means. Raises ValueError."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"'{text}' is not a share such as 1/4")
        return cls(int(found[1]), int(found[2]))

    def has(self, path: str) -> bool:
        """Whether the file with this path below the mount belongs to the share."""
        digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.shares == self.number - 1


ALL = Share(1, 1)


def listed(stream: BinaryIO, *, null: bool) -> Iterator[str]:
    """Yield the paths in a list: one in a line, or each ended by a NUL."""
    for path in stream.read().split(b"\0" if null else b"\n"):
        if path:
            yield os.fsdecode(path)


def expanded(pattern: str, failed: Failed) -> Iterator[str]:
    """Yield the paths that match a pattern of the shell; a path that exists stands for itself."""
    if not glob.has_magic(pattern) or os.path.lexists(pattern):
        yield pattern
        return
    found = False
    for path in glob.iglob(pattern, recursive=True):
        found = True
        yield path
    if not found:
        failed(pattern, "nothing matches it")


def mount_of(paths: Sequence[str], found: list[Mount]) -> Mount:
    """Return the mount of the first path that is in one. Raises MountError if none is.

    Also raises it if the mount has no data cache.
    """
    problem: MountError | None = None
    for path in paths:
        try:
            mount, _ = mounts.at(_literal(path), found)
        except MountError as error:
            problem = problem or error
            continue
        if not any(mount.status.get(name) for name in ("cache_directory", "cache_bucket")):
            raise MountError(
                f"the mount at '{mount.directory}' has no data cache",
                "mount the bucket with --cache DIRECTORY or --cache-xz BUCKET",
            )
        return mount
    raise problem or MountError("there are no paths", "give some, or a list with --from-file")


class Finder:
    """Finds files of one mount. What cannot be found is passed to `failed`."""

    def __init__(self, mount: Mount, found: list[Mount], failed: Failed) -> None:
        self._mount = mount
        self._found = found
        self._failed = failed

    def files(self, paths: Iterable[str], share: Share = ALL) -> Iterator[str]:
        """Yield the paths below the mount of all files that the paths name."""
        named: dict[str, bool] = {}  # whether it is a directory
        for path in paths:
            below = self._below(path)
            if below is not None:
                named[below[0]] = below[1]
        for path, is_directory in named.items():
            if any(named.get(parent) for parent in _parents(path)):
                continue
            for file in self._walk(path) if is_directory else [path]:
                if share.has(file):
                    yield file

    def _below(self, path: str) -> tuple[str, bool] | None:
        """Return a path below the mount, and whether it is a directory."""
        try:
            mount, below = mounts.at(path, self._found)
            if mount.directory != self._mount.directory:
                self._failed(path, f"it is in another mount, '{mount.directory}'")
                return None
            return below, os.path.isdir(os.path.join(mount.directory, below))
        except MountError as error:
            self._failed(path, error.what)
            return None

    def _walk(self, top: str) -> Iterator[str]:
        """Yield the files below a directory, in the order in which the mount lists them."""
        waiting = [top]
        while waiting:
            directory = waiting.pop()
            full = os.path.join(self._mount.directory, directory)
            inner = []
            try:
                with os.scandir(full) as entries:
                    for entry in entries:
                        path = os.path.join(directory, entry.name)
                        if entry.is_dir(follow_symlinks=False):
                            inner.append(path)
                        elif entry.is_file(follow_symlinks=False):
                            yield path
            except OSError as error:
                self._failed(full, error.strerror or str(error))
            waiting += reversed(inner)


def _parents(path: str) -> Iterator[str]:
    """Yield the directories above a path, up to the mount's own, which is empty."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def _literal(pattern: str) -> str:
    """Return the directory in which a pattern is looked for; a path itself."""
    if not glob.has_magic(pattern) or os.path.lexists(pattern):
        return pattern
    return os.path.dirname(re.split(r"[*?[]", pattern, maxsplit=1)[0]) or "."
