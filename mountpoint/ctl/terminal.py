"""Properties of a stream: whether lines can be redrawn, its width, and text that fits it."""

import os
import unicodedata
from typing import TextIO

COLUMNS = 80
#: The width of a stream that is no terminal: lines are never broken.
NO_WIDTH = 1 << 30


def can_redraw(stream: TextIO) -> bool:
    """Whether a written line can be overwritten."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def columns(stream: TextIO) -> int:
    """Return the current width of the terminal, which its user may change at any time."""
    if not stream.isatty():
        return NO_WIDTH
    try:
        return os.get_terminal_size(stream.fileno()).columns or COLUMNS
    except (OSError, ValueError):
        return COLUMNS


def fit(text: str, width: int) -> str:
    """Return `text`, cut with an ellipsis if it is wider than `width` columns."""
    if width_of(text) <= width:
        return text
    used, kept = 1, ""  # the ellipsis takes one column
    for character in text:
        used += _width(character)
        if used > width:
            break
        kept += character
    return kept + "…" if width > 0 else ""


def width_of(text: str) -> int:
    """Return the number of columns that a terminal needs for `text`."""
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):  # drawn onto the previous one
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
