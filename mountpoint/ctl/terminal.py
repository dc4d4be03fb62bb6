"""What a stream can show: whether lines can be redrawn, how wide it is, what fits into a line."""

import os
import unicodedata
from typing import TextIO

COLUMNS = 80
#: The width of what is no terminal: nothing is broken there.
NO_WIDTH = 1 << 30


def can_redraw(stream: TextIO) -> bool:
    """Whether a line that was written can be written again."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def columns(stream: TextIO) -> int:
    """Return the width of the terminal now: its user may resize it at any time."""
    if not stream.isatty():
        return NO_WIDTH
    try:
        return os.get_terminal_size(stream.fileno()).columns or COLUMNS
    except (OSError, ValueError):
        return COLUMNS


def fit(text: str, width: int) -> str:
    """Return `text`, or as much of it as `width` columns hold, with an ellipsis."""
    if width_of(text) <= width:
        return text
    used, kept = 1, ""  # the ellipsis takes one
    for character in text:
        used += _width(character)
        if used > width:
            break
        kept += character
    return kept + "…" if width > 0 else ""


def width_of(text: str) -> int:
    """Return how many columns a terminal needs for `text`."""
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):  # drawn onto the one before
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
