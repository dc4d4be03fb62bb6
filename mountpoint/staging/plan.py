"""Pure: what of a changed file is sent, and what the server copies from the base.

S3 copies a range of an object as a part of the new one. But a part, but for the last, has at least
5 MiB, and this goes for the part that is copied and for the one that is sent before it. So a
changed range is sent together with what follows it, up to that size, and a gap between
two changed ranges that is too small for a copy is sent too.

What is worth copying: not to copy a gap moves its bytes over the line, twice where they have to be
fetched first. To copy it is one request more, and cuts the parts beside it short: some 0.1 s, in
which one connection moves 8 MiB. So a gap is copied when copying saves as much.

A file of up to one part is one PUT, which is less than the four requests of a copy in parts.

An object has 10,000 parts at the most. Sent as a whole a file takes `parts_of`; each copy adds at
most two, itself and a part that ends early. Where there are too many gaps the largest are copied. A
file that is too large to be sent as a whole may have `FEW_COPIES`: then they are most of it.

Not known here: whether the server can copy at all. Where it cannot, the upload reads.
"""

from dataclasses import dataclass
from heapq import nlargest

from mountpoint.config import LEAST_PART_BYTES, MIB
from mountpoint.staging.extents import Extents
from mountpoint.writing.parts import MOST_PARTS, part_size

WORTH_BYTES = 8 * MIB
FEW_COPIES = 100


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of the new object: `copied` by the server from the base, or sent."""

    start: int
    stop: int
    copied: bool


def segments(extents: Extents, part_bytes: int) -> list[Segment]:
    """Return how to upload a file in order, in parts of `part_bytes`; [] for an empty one."""
    size_bytes = extents.size_bytes
    copies = [] if size_bytes <= part_bytes else _worthwhile(extents)
    most = max((MOST_PARTS - parts_of(size_bytes, part_bytes)) // 2, FEW_COPIES)
    if len(copies) > most:
        copies = sorted(nlargest(most, copies, key=lambda copy: copy[1] - copy[0]))
    planned = []
    position = 0
    for start, stop in copies:
        if position < start:
            planned.append(Segment(position, start, copied=False))
        planned.append(Segment(start, stop, copied=True))
        position = stop
    if position < size_bytes:
        planned.append(Segment(position, size_bytes, copied=False))
    return planned


def parts_of(size_bytes: int, part_bytes: int) -> int:
    """Return how many parts a file of this size has when all of it is sent."""
    count = before_bytes = 0
    while before_bytes < size_bytes:
        before_bytes += part_size(part_bytes, before_bytes)
        count += 1
    return count


def _worthwhile(extents: Extents) -> list[tuple[int, int]]:
    """Return what could be copied and is worth it, in order."""
    copies = []
    position = 0  # all before it is planned
    for gap_start, stop in extents.unchanged():
        start = gap_start
        if position < start:
            start = max(start, position + LEAST_PART_BYTES)
        if stop - start < LEAST_PART_BYTES and stop < extents.size_bytes:
            continue
        fetched_bytes = sum(end - begin for begin, end in extents.missing(start, stop))
        if start < stop and stop - start + fetched_bytes >= WORTH_BYTES:
            copies.append((start, stop))
            position = stop
    return copies
