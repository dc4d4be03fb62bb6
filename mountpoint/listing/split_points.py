"""Guess where in a directory later pages begin, to list them in parallel. Pure.

A listing continues from the end of its last page, so its pages come one after another. But S3 lists
from any position. If the positions where later pages begin are *guessed*, several can be requested
at once.

Names made by a program have a part that increases: a counter, a date, a hash. It begins where the
first and the last name of a page differ, plus any characters of its alphabet just before (`f0000`
to `f0999` continue with `f1000`). That part is read as a number. The page shows how far apart its
names are, and one page further is the next position. Only the number of requests depends on a
guess: a position may have any names around it, or none.

A position has no "/", sorts after the previous one, and is valid UTF-8 if that was, because S3
accepts nothing else. If names continue as before, it lies before the last name of the previous
page. The caller that joins two pages must check that there is no gap between them.
"""

from collections.abc import Sequence
from typing import NamedTuple

DIGITS = b"0123456789"
LOWER = bytes(range(ord("a"), ord("z") + 1))
UPPER = LOWER.upper()
#: The first alphabet that has all characters is used. Each is in byte order, as names are listed.
ALPHABETS = (
    DIGITS,
    LOWER,
    UPPER,
    DIGITS + LOWER[:6],
    DIGITS + UPPER[:6],
    DIGITS + LOWER,
    DIGITS + UPPER,
    UPPER + LOWER,
    DIGITS + UPPER + LOWER,
)
#: Digits of the number from the first that differs: 16^8 positions are enough for any page.
MOST_BEHIND = 8
#: Digits before that, into which it may carry.
MOST_BEFORE = 8
#: Names that two pages share. A page after `f1998` lists the directory `f1998/` again (S3 compares
#: keys), and a page must begin one name early.
OVERLAP = 2
#: Names sampled per page. No divisor of a counter's base, so that all digits are seen.
SAMPLES = 37
#: The largest share of a page that is held back. If names are spread at random, like hashes, the
#: numbers of names in equal ranges differ by some percent. Three times the page's own unevenness
#: is held back; then only one range in 25 is still too large.
MOST_SPARED = 0.3
UNEVENNESS_SPARED = 3.0
#: If a page is less even than this, its second half is examined alone: the names that follow are
#: like the last ones (a page may begin with `.hidden` and `README`).
EVEN_SHARE = 0.125
LEAST_SAMPLED = 8


class Guess(NamedTuple):
    """Positions one page apart; names consist of `prefix`, a number, and any suffix."""

    prefix: bytes
    alphabet: bytes
    width: int  #: the number of digits
    step: int  #: the distance from page to page, in the number

    def after(self, position: bytes) -> bytes | None:
        """Return the position one page after `position`, or None if there is no guess."""
        if not position.startswith(self.prefix):
            return None
        number = _number(position[len(self.prefix) :], self.alphabet, self.width) + self.step
        if number >= len(self.alphabet) ** self.width:
            return None
        digits = bytearray()
        for _ in range(self.width):
            number, digit = divmod(number, len(self.alphabet))
            digits.append(self.alphabet[digit])
        found = self.prefix + bytes(reversed(digits))
        return found if found > position else None


def guess(names: Sequence[bytes]) -> Guess | None:
    """Guess from the sorted names of one full page; None if there is no pattern."""
    found, unevenness = _fit(names, len(names))
    part = names[len(names) // 2 :]
    while unevenness > EVEN_SHARE and len(part) >= LEAST_SAMPLED:
        found, unevenness = _fit(part, len(names))
        part = part[len(part) // 2 :]
    return found


def _fit(part: Sequence[bytes], page_size: int) -> tuple[Guess | None, float]:
    """Return a guess from some names, and their unevenness: 0 is a counter, 1 has no pattern."""
    if len(part) < 2:
        return None, 1.0
    last = len(part) - 1
    indices = sorted({last * index // (SAMPLES - 1) for index in range(SAMPLES)})
    names = [part[index] for index in indices]
    same = _same(names[0], names[-1])
    behind = {name[same : same + MOST_BEHIND] for name in names}
    alphabet = _alphabet(b"".join(_run(text) for text in behind))
    if alphabet is None or not _is_utf8(names[-1][:same]):
        return None, 1.0
    start = same
    while start > max(same - MOST_BEFORE, 0) and names[-1][start - 1] in alphabet:
        start -= 1
    width = same - start + max(len(_prefix_in(text, alphabet)) for text in behind)
    numbers = [_number(name[start:], alphabet, width) for name in names]
    span = numbers[-1] - numbers[0]
    if span <= 0:
        return None, 1.0
    # The largest distance of a name from its place if names were spread evenly, as a share.
    unevenness = max(
        abs(index / last - (number - numbers[0]) / span)
        for index, number in zip(indices, numbers, strict=True)
    )
    spared = min(UNEVENNESS_SPARED * unevenness, MOST_SPARED)
    step = int(span * (page_size - OVERLAP - int(spared * page_size)) / last)
    return Guess(names[-1][:start], alphabet, width, max(step, 1)), unevenness


def _same(first: bytes, last: bytes) -> int:
    """Return the length in bytes of the common start of two names."""
    for index, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return index
    return min(len(first), len(last))


def _alphabet(characters: bytes) -> bytes | None:
    seen = set(characters)
    if not seen:
        return None
    return next((alphabet for alphabet in ALPHABETS if seen.issubset(alphabet)), None)


def _run(text: bytes) -> bytes:
    """Return the letters and digits at the start of a text."""
    return _prefix_in(text, ALPHABETS[-1])


def _prefix_in(text: bytes, alphabet: bytes) -> bytes:
    return text[: len(text) - len(text.lstrip(alphabet))]


def _number(text: bytes, alphabet: bytes, width: int) -> int:
    """Return the number at the start of a text, padded to `width` digits."""
    number = 0
    ended = False
    for index in range(width):
        digit = -1 if ended or index >= len(text) else alphabet.find(text[index])
        ended = digit < 0
        number = number * len(alphabet) + max(digit, 0)
    return number


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
