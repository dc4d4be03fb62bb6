"""Split a flat listing (keys in order, without a delimiter) into directories. Pure.

All keys in and below a directory are adjacent. So a directory is complete once the listing has
started at or before it and has passed it. Its entries are those that `tree.DirectoryMerge` would
return for its own listing.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from mountpoint.listing.tree import DirectoryMerge, Entry
from mountpoint.s3.client import ListPage, ObjectInfo


class CompleteDirectory(NamedTuple):
    """A complete directory. `requested_at_s` is the request time of the oldest page it comes from.

    `hidden` counts its keys that are not shown because they cannot be names.
    """

    prefix: bytes
    entries: list[Entry]
    requested_at_s: float
    hidden: int = 0


@dataclass(slots=True)
class _PartialDirectory:
    """A directory that the listing has entered and not left."""

    prefix: bytes
    requested_at_s: float
    objects: list[ObjectInfo] = field(default_factory=list)
    prefixes: list[bytes] = field(default_factory=list)


class FlatListing:
    """The directories below `base`, from `start` on; `start` is `base` or below it."""

    def __init__(self, base: bytes, start: bytes) -> None:
        self._base = base
        self._start = start
        self._last = start  # the last key
        self._entered: list[_PartialDirectory] = []  # each one inside the previous one

    def is_in(self, directory: bytes) -> bool:
        """Whether the listing has entered a directory and has not reached its end."""
        return any(each.prefix == directory for each in self._entered)

    def feed(self, page: ListPage, requested_at_s: float) -> list[CompleteDirectory] | None:
        """Take the next page; return the directories that are now complete, in order.

        None if the page does not continue the listing: the store has another order, or
        ignores start-after.
        """
        complete: list[CompleteDirectory] = []
        if page.prefixes or page.skipped:
            return None
        for info in page.objects:
            if info.key <= self._last or not info.key.startswith(self._base):
                return None
            self._last = info.key
            complete += self._leave(info.key)
            self._enter(info.key, requested_at_s)
            if self._entered:
                self._entered[-1].objects.append(info)
        if page.next_token is None:
            complete += self._leave(None)
        return complete

    def _leave(self, key: bytes | None) -> list[CompleteDirectory]:
        """Leave the directories that do not contain `key`; None leaves all."""
        complete = []
        while self._entered and not (key is not None and key.startswith(self._entered[-1].prefix)):
            left = self._entered.pop()
            merge = DirectoryMerge(left.prefix)
            entries = merge.feed(ListPage(left.objects, left.prefixes))
            complete.append(
                CompleteDirectory(left.prefix, entries, left.requested_at_s, merge.unnameable)
            )
        return complete

    def _enter(self, key: bytes, requested_at_s: float) -> None:
        """Enter the directories on the path to `key`.

        Those that begin before `start` are incomplete, and are skipped.
        """
        known = len(self._entered[-1].prefix) if self._entered else len(self._base)
        if not self._entered and self._base == self._start:
            self._entered.append(_PartialDirectory(self._base, requested_at_s))
        slash = key.find(b"/", known)
        while slash >= 0:
            prefix = key[: slash + 1]
            if prefix >= self._start:
                if self._entered:
                    self._entered[-1].prefixes.append(prefix)
                self._entered.append(_PartialDirectory(prefix, requested_at_s))
            slash = key.find(b"/", slash + 1)
