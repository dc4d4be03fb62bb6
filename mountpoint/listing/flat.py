"""Split a flat listing (keys in order, without a delimiter) into directories. Pure.

All keys in and below a directory are adjacent. So a directory is complete once the listing has
started at or before it and has passed it. Its entries are those that `tree.DirectoryMerge` would
return for its own listing.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from mountpoint.listing.tree import DirectoryMerge, Entry
from mountpoint.s3.client import ListPage, ObjectInfo


class Listed(NamedTuple):
    """A complete directory. `asked_at_s` is the request time of the oldest page it comes from.

    `hidden` counts its keys that are not shown because they cannot be names.
    """

    prefix: bytes
    entries: list[Entry]
    asked_at_s: float
    hidden: int = 0


@dataclass(slots=True)
class _Open:
    """A directory that the listing has entered and not left."""

    prefix: bytes
    asked_at_s: float
    objects: list[ObjectInfo] = field(default_factory=list)
    prefixes: list[bytes] = field(default_factory=list)


class FlatListing:
    """The directories below `base`, from `start` on; `start` is `base` or below it."""

    def __init__(self, base: bytes, start: bytes) -> None:
        self._base = base
        self._start = start
        self._last = start  # the last key
        self._open: list[_Open] = []  # each one inside the previous one

    def is_in(self, directory: bytes) -> bool:
        """Whether the listing has entered a directory and has not reached its end."""
        return any(each.prefix == directory for each in self._open)

    def feed(self, page: ListPage, asked_at_s: float) -> list[Listed] | None:
        """Take the next page; return the directories that are now complete, in order.

        None if the page does not continue the listing: the store has an order of its own, or
        ignores start-after.
        """
        whole: list[Listed] = []
        if page.prefixes or page.skipped:
            return None
        for info in page.objects:
            if info.key <= self._last or not info.key.startswith(self._base):
                return None
            self._last = info.key
            whole += self._leave(info.key)
            self._enter(info.key, asked_at_s)
            if self._open:
                self._open[-1].objects.append(info)
        if page.next_token is None:
            whole += self._leave(None)
        return whole

    def _leave(self, key: bytes | None) -> list[Listed]:
        """Leave the directories that do not contain `key`; None leaves all."""
        whole = []
        while self._open and not (key is not None and key.startswith(self._open[-1].prefix)):
            left = self._open.pop()
            merge = DirectoryMerge(left.prefix)
            entries = merge.feed(ListPage(left.objects, left.prefixes))
            whole.append(Listed(left.prefix, entries, left.asked_at_s, merge.unnameable))
        return whole

    def _enter(self, key: bytes, asked_at_s: float) -> None:
        """Enter the directories on the path to `key`.

        Those that begin before `start` are incomplete, and are skipped.
        """
        known = len(self._open[-1].prefix) if self._open else len(self._base)
        if not self._open and self._base == self._start:
            self._open.append(_Open(self._base, asked_at_s))
        slash = key.find(b"/", known)
        while slash >= 0:
            prefix = key[: slash + 1]
            if prefix >= self._start:
                if self._open:
                    self._open[-1].prefixes.append(prefix)
                self._open.append(_Open(prefix, asked_at_s))
            slash = key.find(b"/", slash + 1)
