"""Where in a directory to list next, beside where the listing has come to. Pure.

A listing goes on from the end of its last page, so its pages come one after another. But S3
lists from any position: from where the names of the pages to come are *guessed* to begin,
several can be asked for at once.

Names that a program made have a part that runs: a counter, a date, a hash. It begins where
the first and the last name of a page differ, and whatever of its alphabet stands just before
(`f0000` to `f0999` go on with `f1000`). That part is read as a number, the page tells how far
apart its names are, and a page further on is the next position. Nothing depends on a guess
but how many requests there are: a position may have any names around it, or none.

A position has no "/", lies above the one before, and is valid UTF-8 if that was: S3 takes
nothing else. If names go on as they did, it lies before the last name of the page in front of
it: who joins two pages has to see that nothing is between them.
"""

from collections.abc import Sequence
from typing import NamedTuple

DIGITS = b"0123456789"
LOWER = bytes(range(ord("a"), ord("z") + 1))
UPPER = LOWER.upper()
#: The first that has all characters is taken. In the order of their bytes, as names are listed.
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
#: Characters of the number from the first that differs: 16^8 positions are enough for any page.
MOST_BEHIND = 8
#: And those in front of it, into which it may carry.
MOST_BEFORE = 8
#: Names that two pages have in common. A page that begins after `f1998` has the directory
#: `f1998/` once more (S3 compares keys), and has to be begun by one name too early.
OVERLAP = 2
#: So many names of a page are looked at. Not a divisor of a counter's base: all digits are seen.
SAMPLES = 37
#: What is left of a page when names are spread at random, as hashes are: the numbers of names
#: in equal ranges differ by some percent. Three times the page's own unevenness is left out,
#: which is one range too large of 25; more than this share is not.
MOST_SPARED = 0.3
UNEVENNESS_SPARED = 3.0
#: Where the page is less even than this, its second half is looked at by itself: the names
#: that follow are like the last ones (a page may begin with `.hidden` and `README`).
EVEN_SHARE = 0.125
LEAST_SAMPLED = 8


class Guess(NamedTuple):
    """Positions a page apart, made of names `prefix` + number + whatever."""

    prefix: bytes
    alphabet: bytes
    width: int  #: digits of the number
    step: int  #: from page to page, in the number

    def after(self, position: bytes) -> bytes | None:
        """Return the position a page behind `position`, or None: nothing can be guessed there."""
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
    """Guess from the names of one full page, which ascend; None where nothing is seen."""
    found, unevenness = _fit(names, len(names))
    part = names[len(names) // 2 :]
    while unevenness > EVEN_SHARE and len(part) >= LEAST_SAMPLED:
        found, unevenness = _fit(part, len(names))
        part = part[len(part) // 2 :]
    return found


def _fit(part: Sequence[bytes], page_size: int) -> tuple[Guess | None, float]:
    """Return a guess from some names, and how uneven these are: 0 is a counter, 1 is nothing."""
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
    # How many names any of them is away from where it were, if they were spread evenly.
    unevenness = max(
        abs(index / last - (number - numbers[0]) / span)
        for index, number in zip(indices, numbers, strict=True)
    )
    spared = min(UNEVENNESS_SPARED * unevenness, MOST_SPARED)
    step = int(span * (page_size - OVERLAP - int(spared * page_size)) / last)
    return Guess(names[-1][:start], alphabet, width, max(step, 1)), unevenness


def _same(first: bytes, last: bytes) -> int:
    """Return how many bytes two names have in common at their start."""
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
    """Return the letters and digits with which a text begins."""
    return _prefix_in(text, ALPHABETS[-1])


def _prefix_in(text: bytes, alphabet: bytes) -> bytes:
    return text[: len(text) - len(text.lstrip(alphabet))]


def _number(text: bytes, alphabet: bytes, width: int) -> int:
    """Return the number with which a text begins, as if it had `width` digits."""
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
