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
MAX_DIGITS_AFTER = 8
#: Digits before that, into which it may carry.
MAX_DIGITS_BEFORE = 8
#: Names that two pages share. A page after `f1998` lists the directory `f1998/` again (S3 compares
#: keys), and a page must begin one name early.
OVERLAP = 2
#: Names sampled per page. No divisor of a counter's base, so that all digits are seen.
SAMPLES = 37
#: The largest margin, as a share of a page. If names are spread at random, like hashes, the numbers
#: of names in equal ranges differ by some percent. The margin is three times the page's own
#: unevenness; then only one range in 25 is still too large.
MAX_MARGIN = 0.3
MARGIN_PER_UNEVENNESS = 3.0
#: If a page is less even than this, its second half is examined alone: the names that follow are
#: like the last ones (a page may begin with `.hidden` and `README`).
MAX_UNEVENNESS = 0.125
MIN_SAMPLED = 8


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
    while unevenness > MAX_UNEVENNESS and len(part) >= MIN_SAMPLED:
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
    common = _common_length(names[0], names[-1])
    tails = {name[common : common + MAX_DIGITS_AFTER] for name in names}
    alphabet = _alphabet(b"".join(_alphanumeric_start(text) for text in tails))
    if alphabet is None or not _is_utf8(names[-1][:common]):
        return None, 1.0
    start = common
    while start > max(common - MAX_DIGITS_BEFORE, 0) and names[-1][start - 1] in alphabet:
        start -= 1
    width = common - start + max(len(_prefix_in(text, alphabet)) for text in tails)
    numbers = [_number(name[start:], alphabet, width) for name in names]
    span = numbers[-1] - numbers[0]
    if span <= 0:
        return None, 1.0
    # The largest distance of a name from its position if names were spread evenly, as a share.
    unevenness = max(
        abs(index / last - (number - numbers[0]) / span)
        for index, number in zip(indices, numbers, strict=True)
    )
    margin = min(MARGIN_PER_UNEVENNESS * unevenness, MAX_MARGIN)
    step = int(span * (page_size - OVERLAP - int(margin * page_size)) / last)
    return Guess(names[-1][:start], alphabet, width, max(step, 1)), unevenness


def _common_length(first: bytes, last: bytes) -> int:
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


def _alphanumeric_start(text: bytes) -> bytes:
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
