"""Pure: names of mounts; numbers, sizes, times and money in words."""

from collections.abc import Mapping
from typing import Any

from mountpoint.log.format import printable


def title(status: Mapping[str, Any]) -> str:
    """Return the bucket and directory from a mount's status."""
    bucket = status["bucket"] + ("/" + status["prefix"] if status["prefix"] else "")
    return f"{printable(bucket)} at {printable(status['directory'])}"


def size(size_bytes: float) -> str:
    """Return a size in its largest unit: 999 B, 1.5 MB, 12 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5:
            return f"{number(size_bytes)} {unit}"
        size_bytes /= 1000
    return f"{number(size_bytes)} TB"


def number(value: float) -> str:
    """Return a number with at least two digits, and no more decimals than needed for that."""
    return f"{value:.0f}" if value >= 9.95 or value == int(value) else f"{value:.1f}"


def count(items: int, noun: str) -> str:
    """Return "1 file", "2 files"."""
    return f"{items} {noun}" if items == 1 else f"{items} {noun}s"


def milliseconds(us: float) -> str:
    """Return a time given in microseconds, or "-" for 0."""
    if not us:
        return "-"
    return f"{us:.0f} us" if us < 999.5 else f"{us / 1000:.1f} ms"


def dollars(amount: float) -> str:
    """Return an amount of money."""
    return f"${amount:.2f}" if amount >= 0.01 or not amount else f"${amount:.6f}"


def age(seconds: float) -> str:
    """Return a time in its largest unit: 59 s, 3 h, 12 d."""
    for unit, length_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds // length_s:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
