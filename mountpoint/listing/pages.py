"""What a page of a listing tells, and when another one is worth asking for. Pure.

A page lists up to 1,000 names of one directory. It begins after a *position* and tells of
every name up to its *reach*: what lies between and is not in it does not exist. A position
is a name, or any bytes without "/"; it counts from the directory on. b"" is the beginning.

Two orders are in use. S3 compares keys, so the directory `a` stands at `a/`, after `a!` and
`a-1`; stores that keep folders compare names, so it stands before them. What is told here is
true in both: a page tells of a name when its greatest name is beyond `name/`. Nothing is
told by a page that is in neither order, or that begins before it should.
"""

from bisect import bisect_left
from typing import NamedTuple

from mountpoint.listing.tree import MAX_KEY_BYTES
from mountpoint.s3.client import ListPage

#: The reach of a directory's last page: beyond any name.
END = b"\xff" * (MAX_KEY_BYTES + 1)

#: How many lookups a page has to answer beyond the one that it was asked for. A lookup alone is
#: a LIST of a few keys, 4 KB and 1 ms of CPU; a page takes S3 no longer, but is 200 KB and 8 ms.
PAGE_PRICE = 2
#: With so many names it is not dearer than a lookup alone.
SMALL_PAGE = 100
#: Two pages on trust: the first may end just behind the name that it was asked for.
FIRST_CREDIT = 2 * PAGE_PRICE
#: Sixteen threads may each find their page too old in the same moment.
MOST_CREDIT = 16 * PAGE_PRICE
#: Lookups alone after pages that were not worth it: a directory of millions, read at random,
#: then pays a page for every seventeenth lookup.
LOOKUPS_ALONE = 16
#: Lookups within the ttl before a page is asked for where nothing was ever listed.
FEW_LOOKUPS = 2


class Span(NamedTuple):
    """A page, without its names: it began after `after` and tells up to `reach`.

    `page` is for whoever keeps the names: a number by which to find them.
    """

    after: bytes
    reach: bytes
    asked_at_s: float
    page: int = 0

    def tells_of(self, name: bytes) -> bool:
        """Whether the page says what `name` is, or that it does not exist."""
        return self.after < name and name + b"/" <= self.reach


def reach_of(prefix: bytes, after: bytes, page: ListPage) -> bytes | None:
    """Return up to which position a page that begins after `after` tells; None: of nothing.

    `prefix` is the directory's.
    """
    start = len(prefix)
    files = [info.key[start:] for info in page.objects if info.key != prefix]
    folders = [key[start:] for key in page.prefixes]
    if page.skipped or not (_ascending(after, files) and _ascending(after, folders)):
        return None
    if page.next_token is None:
        # An empty rest may be a store's misunderstanding of where to begin.
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
    """Return a position after which `name` is among the first to be listed.

    It is valid UTF-8 if the name is, because S3 takes nothing else.
    """
    text = name.decode("utf-8", "surrogateescape")
    above, last = text[:-1], ord(text[-1]) - 1
    if last == ord("/"):
        last -= 1
    # No control characters, no surrogates (which also stand for bytes that are not UTF-8).
    if last > ord(" ") and not 0xD800 <= last <= 0xDFFF:
        above += chr(last) + "~"
    return above.encode("utf-8", "surrogateescape")


class Spans:
    """The spans that are known of one directory.

    Invariant: they are in order and do not overlap.
    """

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, new: Span) -> None:
        """Put in a span; it takes the place of what it overlaps.

        The span behind an older version of it goes on where it ends now, so that pages that
        adjoin still do after names have come or gone.
        """
        index = bisect_left(self._spans, new.after, key=_after)
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

    def find(self, name: bytes) -> Span | None:
        """Return the span in which `name` lies. It need not tell of it: `name/` may lie beyond."""
        index = bisect_left(self._spans, name, key=_after) - 1
        if index >= 0 and name <= self._spans[index].reach:
            return self._spans[index]
        return None

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        last = b""
        for span in self._spans:
            assert last <= span.after < span.reach, self._spans
            last = span.reach


def _after(span: Span) -> bytes:
    return span.after


class PageCredit:
    """Whether one more page of a directory is worth its price.

    Each page costs `PAGE_PRICE`, each lookup that a page answers brings 1. Who has nothing
    left makes `LOOKUPS_ALONE` lookups alone, and may then try one page again.
    """

    def __init__(self, ttl_s: float) -> None:
        # constants
        self._ttl_s = ttl_s
        # mutable
        self._credit = FIRST_CREDIT
        self._alone = 0  # so many lookups alone are to come
        self._times_s = [-ttl_s] * FEW_LOOKUPS  # of the last lookups, oldest first

    def answered(self, now_s: float) -> None:
        """Note a lookup that a page has answered."""
        self._credit = min(self._credit + 1, MOST_CREDIT)
        self._note(now_s)

    def buys_page(self, now_s: float, *, known: bool) -> bool:
        """Note a lookup that no page answers; return whether a page may be asked for it.

        `known` says that it lies in a page that was listed before.
        """
        busy = now_s - self._times_s[0] < self._ttl_s
        self._note(now_s)
        if self._alone > 0:
            self._alone -= 1
            return False
        if not (known or busy):
            return False
        if self._credit < PAGE_PRICE:
            self.pause()
            self._alone -= 1
            return False
        self._credit -= PAGE_PRICE
        return True

    def spares_page(self) -> bool:
        """Whether a page may be asked for before it is needed: the last ones were worth it."""
        if self._alone > 0 or self._credit < 2 * PAGE_PRICE:
            return False
        self._credit -= PAGE_PRICE
        return True

    def refund(self) -> None:
        """Note that a page was small, and so cost nothing."""
        self._credit = min(self._credit + PAGE_PRICE, MOST_CREDIT)

    @property
    def rests(self) -> bool:
        """Whether the next lookups are to be made alone."""
        return self._alone > 0

    def skip(self) -> None:
        """Note a lookup that was answered in another way."""
        self._alone = max(self._alone - 1, 0)

    def pause(self) -> None:
        """Let the next lookups be made alone."""
        self._alone = LOOKUPS_ALONE
        self._credit = PAGE_PRICE

    def _note(self, now_s: float) -> None:
        self._times_s = [*self._times_s[1:], now_s]
