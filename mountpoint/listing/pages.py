"""Which names a page of a listing covers, and when another page is worth its cost. Pure.

A page lists up to 1,000 names of one directory. It begins after a *position* and covers every name
up to its *reach*: a name in between that it does not list does not exist. A position is a name, or
any bytes without "/", relative to the directory. b"" is the beginning.

Stores use two orders. S3 compares keys, so the directory `a` sorts as `a/`, after `a!` and `a-1`.
Stores with real folders compare names, so it sorts before them. The rule here holds in both: a page
covers a name if its greatest name is beyond `name/`. A page in neither order, or one that begins
before its position, covers nothing.
"""

from bisect import bisect_left
from typing import NamedTuple

from mountpoint.listing.tree import MAX_KEY_BYTES
from mountpoint.s3.client import ListPage

#: The reach of a directory's last page, beyond any name.
END = b"\xff" * (MAX_KEY_BYTES + 1)

#: Further lookups that a page must answer to be worth its cost. A single lookup is a LIST of few
#: keys, 4 KB and 1 ms of CPU. A page takes S3 no longer, but has 200 KB and takes 8 ms.
PAGE_PRICE = 2
#: A page of at most this many names costs no more than a single lookup.
SMALL_PAGE = 100
#: Two pages on credit: the first may end just after the name that it was requested for.
FIRST_CREDIT = 2 * PAGE_PRICE
#: Sixteen threads may each find their page expired at the same moment.
MAX_CREDIT = 16 * PAGE_PRICE
#: Single lookups after pages that were not worth it. A directory of millions of names, read at
#: random, then costs one page for every seventeenth lookup.
SINGLE_LOOKUPS = 16
#: Lookups within the ttl before a page is requested where nothing was listed yet.
FEW_LOOKUPS = 2


class Span(NamedTuple):
    """A page without its names: it begins after `after` and covers names up to `reach`.

    `page` is the number under which the cache finds the names.
    """

    after: bytes
    reach: bytes
    requested_at_s: float
    page: int = 0

    def covers(self, name: bytes) -> bool:
        """Whether the page covers `name`: it lists the name, or proves that it is missing."""
        return self.after < name and name + b"/" <= self.reach


def reach_of(prefix: bytes, after: bytes, page: ListPage) -> bytes | None:
    """Return the reach of a page that begins after `after`; None if it covers nothing.

    `prefix` is the directory's.
    """
    start = len(prefix)
    files = [info.key[start:] for info in page.objects if info.key != prefix]
    folders = [key[start:] for key in page.prefixes]
    if page.skipped or not (_ascending(after, files) and _ascending(after, folders)):
        return None
    if page.next_token is None:
        # The store may have misunderstood the start, so an empty page after it proves nothing.
        return END if files or folders or not after else None
    reach = max([*files, *(folder[:-1] for folder in folders)], default=b"")
    return reach if reach > after else None


def _ascending(after: bytes, names: list[bytes]) -> bool:
    last = after
    for name in names:
        if name <= last:
            return False
        last = name
    return True


def just_before(name: bytes) -> bytes:
    """Return a position after which `name` is among the first listed.

    It is valid UTF-8 if the name is, because S3 accepts nothing else.
    """
    text = name.decode("utf-8", "surrogateescape")
    above, last = text[:-1], ord(text[-1]) - 1
    if last == ord("/"):
        last -= 1
    # Avoid control characters and surrogates, which also stand for bytes that are not UTF-8.
    if last > ord(" ") and not 0xD800 <= last <= 0xDFFF:
        above += chr(last) + "~"
    return above.encode("utf-8", "surrogateescape")


class Spans:
    """The known spans of one directory.

    Invariant: they are sorted and do not overlap.
    """

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._afters: list[bytes] = []  # theirs, which each lookup searches

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, new: Span) -> None:
        """Add a span; it replaces the spans it overlaps.

        The next span then begins where this one ends, if it followed an older version of it. So
        adjacent pages stay adjacent after names were added or removed.
        """
        index = bisect_left(self._afters, new.after)
        before, behind = self._spans[:index], self._spans[index:]
        if before and before[-1].reach > new.after:
            before[-1] = before[-1]._replace(reach=new.after)
        if behind and behind[0].after == new.after:
            old = behind.pop(0)
            if behind and behind[0].after == old.reach > new.reach:
                behind[0] = behind[0]._replace(after=new.reach)
        while behind and behind[0].after < new.reach:
            if behind[0].reach > new.reach:
                behind[0] = behind[0]._replace(after=new.reach)
            else:
                del behind[0]
        self._spans = [*before, new, *behind]
        self._afters = [span.after for span in self._spans]

    def find(self, name: bytes) -> Span | None:
        """Return the span in which `name` lies. It may not cover it: `name/` may lie beyond."""
        index = bisect_left(self._afters, name) - 1
        if index >= 0 and name <= self._spans[index].reach:
            return self._spans[index]
        return None

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        assert self._afters == [span.after for span in self._spans]
        last = b""
        for span in self._spans:
            assert last <= span.after < span.reach, self._spans
            last = span.reach


class PageCredit:
    """Decides whether another page of a directory is worth its cost.

    Each page costs `PAGE_PRICE`; each lookup that a page answers earns 1. With no credit left,
    the next `SINGLE_LOOKUPS` lookups are single, and then one page may be tried again.
    """

    def __init__(self, ttl_s: float) -> None:
        # constants
        self._ttl_s = ttl_s
        # mutable
        self._credit = FIRST_CREDIT
        self._single_left = 0  # lookups still to be single
        self._times_s = [-ttl_s] * FEW_LOOKUPS  # of the last lookups, oldest first

    def record_hit(self, now_s: float) -> None:
        """Record a lookup that a page answered."""
        if self._credit < MAX_CREDIT:
            self._credit += 1
        self._times_s = [*self._times_s[1:], now_s]

    def buy_page(self, now_s: float, *, known: bool) -> bool:
        """Record a lookup that no page answers; return whether a page may be requested for it.

        `known` means that the name lies in a page that was listed before.
        """
        busy = now_s - self._times_s[0] < self._ttl_s
        self._times_s = [*self._times_s[1:], now_s]
        if self._single_left > 0:
            self._single_left -= 1
            return False
        if not (known or busy):
            return False
        if self._credit < PAGE_PRICE:
            self.pause()
            self._single_left -= 1
            return False
        self._credit -= PAGE_PRICE
        return True

    def buy_renewal(self) -> bool:
        """Return whether a page may be renewed early: only if the last ones were worth it."""
        if self._single_left > 0 or self._credit < 2 * PAGE_PRICE:
            return False
        self._credit -= PAGE_PRICE
        return True

    def refund(self) -> None:
        """Record that a page was small, and so cost nothing."""
        self._credit = min(self._credit + PAGE_PRICE, MAX_CREDIT)

    @property
    def paused(self) -> bool:
        """Whether the next lookups must be single."""
        return self._single_left > 0

    def skip(self) -> None:
        """Record a lookup that was answered in another way."""
        self._single_left = max(self._single_left - 1, 0)

    def pause(self) -> None:
        """Make the next lookups single."""
        self._single_left = SINGLE_LOOKUPS
        self._credit = PAGE_PRICE
