"""Pure: decide which ranges of a changed file are sent, and which the server copies from the base.

The server can copy a range of an object as a part of the new one. But each part except the last has
at least 5 MiB, and more the later it begins, so that 10,000 parts are enough (`upload.parts`). This
holds for a copied part and for the sent part before it. So a changed range is sent together with
the bytes after it, up to that size, and a gap between two changed ranges that is too small for a
copy is sent too.

When a copy is worth it: sending a gap moves its bytes over the network, twice if they have to be
fetched first. Copying it takes one more request, and cuts the parts beside it short: about 0.1 s,
in which one connection moves 8 MiB. So a gap is copied if that saves as many bytes.

Some stores need parts of one size. There a part is copied if nothing in it has changed, and sent
whole otherwise: one request instead of another.

A file of up to one part is one PUT, which is less than the four requests of a copy in parts.

Not known here: whether the server can copy at all. If it cannot, the upload reads the ranges.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mountpoint.config import MIB, MIN_PART_BYTES
from mountpoint.staging.extents import Extents
from mountpoint.staging.range_set import Range
from mountpoint.upload.parts import part_size

WORTH_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of the new object, in bytes: `copied` by the server from the base, or sent."""

    start: int
    stop: int
    copied: bool


def segments(extents: Extents, part_bytes: int, equal_bytes: int | None = None) -> list[Segment]:
    """Return how to upload a file in order, in parts of `part_bytes`; [] for an empty file.

    `equal_bytes` is the size of all parts but the last, where parts must have one size.
    """
    size_bytes = extents.size_bytes
    copied: Iterator[Range] = iter(())
    if size_bytes > part_bytes:
        if equal_bytes is None:
            copied = _ranges(extents, part_bytes)
        else:
            copied = _whole_parts(extents, equal_bytes)
    planned: list[Segment] = []
    position = 0  # all bytes before it are planned
    for start, stop in copied:
        if position < start:
            planned.append(Segment(position, start, copied=False))
        planned.append(Segment(start, stop, copied=True))
        position = stop
    if position < size_bytes:
        planned.append(Segment(position, size_bytes, copied=False))
    return planned


def _whole_parts(extents: Extents, equal_bytes: int) -> Iterator[Range]:
    """Yield the ranges to copy in parts of one size; the last part may be smaller."""
    for gap_start, gap_stop in extents.unchanged():
        start = -(-gap_start // equal_bytes) * equal_bytes
        is_end = gap_stop == extents.size_bytes
        stop = gap_stop if is_end else gap_stop - gap_stop % equal_bytes
        if start < stop:
            yield start, stop


def _ranges(extents: Extents, part_bytes: int) -> Iterator[Range]:
    """Yield the ranges to copy where parts may have any size."""
    part = 0  # the start of the last part to send
    for gap_start, stop in extents.unchanged():
        while gap_start - part > part_size(part_bytes, part):
            part += part_size(part_bytes, part)
        # That part must be large enough for parts to follow it.
        start = gap_start
        if part < gap_start:
            start = max(gap_start, part + part_size(MIN_PART_BYTES, part))
        if stop - start < part_size(MIN_PART_BYTES, start):
            continue
        fetched_bytes = sum(last - first for first, last in extents.missing(start, stop))
        if stop - start + fetched_bytes < WORTH_BYTES:
            continue
        yield start, stop
        part = stop
