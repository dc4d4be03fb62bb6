"""Pure: cut a file into parts, which are sent or copied.

S3 accepts 10,000 parts of 5 MiB to 5 GiB; all but the last must have the minimum size
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html). A file's final size is known
only at its end, so parts grow with the file.

Some stores need all parts but the last to have one size (Cloudflare R2:
https://developers.cloudflare.com/r2/objects/multipart-objects/). A file of known size then gets
parts of the `part_size` at its end, 1,250 of them. Other files get up to 10,000 parts of their
first part's size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mountpoint.config import MAX_PART_BYTES, MIB, MIN_PART_BYTES

MAX_PARTS = 10_000
#: The largest object: the greatest number of parts, each of the greatest size.
MAX_OBJECT_BYTES = MAX_PARTS * MAX_PART_BYTES

#: A part has at least 1/1250 of the bytes before it. So 10,000 parts reach 5 TiB even from the
#: smallest part size, and parts of 8 MiB begin to grow at 10 GB. A file of 100 GiB ends with parts
#: of 80 MiB, one of 1 TiB with parts of 820 MiB, each of which has to be in memory.
GROWTH = 1250

#: When ranges are copied, the first parts may have S3's minimum size wherever they begin, because a
#: range that is too small for a part has to be read. The parts after them grow and still reach
#: 5 TiB.
FREE_PARTS = 2_400


def part_size(min_bytes: int, before_bytes: int) -> int:
    """Return the size, in bytes, of the part that begins after `before_bytes` of the file."""
    grown = -(-before_bytes // GROWTH)
    grown = -(-grown // MIB) * MIB
    return max(min_bytes, min(grown, MAX_PART_BYTES))


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of part sizes. Tests use other values than S3's.

    `copied_part_bytes` is how much the server copies in one request: several requests copy faster
    than one, and none should run into the limit of an answer's time.
    """

    min_part_bytes: int = MIN_PART_BYTES
    copied_part_bytes: int = 128 * MIB


S3_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Step:
    """The next step: `size_bytes` of a range are copied by the server, or read and sent."""

    copied: bool
    size_bytes: int


def min_size(limits: Limits, number: int, before_bytes: int) -> int:
    """Return the minimum size of part `number`, which begins after `before_bytes` and is not last.

    A file that is built from many small ranges must not run out of part numbers.
    """
    if number <= FREE_PARTS:
        return limits.min_part_bytes
    return part_size(limits.min_part_bytes, before_bytes)


def next_step(
    limits: Limits,
    number: int,
    before_bytes: int,
    gathered_bytes: int,
    source_bytes: int,
    left_bytes: int,
) -> Step:
    """Return the next step for a range of which `left_bytes` are left.

    The range belongs to a source of `source_bytes`. `number` is the number of the next part.
    `gathered_bytes` wait to be sent as that part, after `before_bytes`. A copied part comes after
    them, so they must be enough for a part.
    """
    # From a source of up to 5 MB only the whole can be copied:
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPartCopy.html
    if source_bytes <= limits.min_part_bytes:
        return Step(copied=False, size_bytes=left_bytes)
    missing = 0
    if gathered_bytes:
        missing = max(min_size(limits, number, before_bytes) - gathered_bytes, 0)
        number += 1
    at = before_bytes + gathered_bytes + missing
    if left_bytes - missing < min_size(limits, number, at):
        return Step(copied=False, size_bytes=left_bytes)
    if missing:
        return Step(copied=False, size_bytes=missing)
    return Step(copied=True, size_bytes=copied_size(limits, number, at, left_bytes))


def next_equal_step(
    limits: Limits,
    equal_bytes: int,
    gathered_bytes: int,
    source_bytes: int,
    left_bytes: int,
    *,
    last: bool,
) -> Step:
    """Return what `next_step` does where all parts but the last have `equal_bytes`.

    `last`: nothing follows the range, so its end may be copied, however small it is.
    """
    if source_bytes <= limits.min_part_bytes:
        return Step(copied=False, size_bytes=left_bytes)
    missing = equal_bytes - gathered_bytes if gathered_bytes else 0
    rest = left_bytes - missing
    if rest <= 0 or (rest < equal_bytes and not last):
        return Step(copied=False, size_bytes=left_bytes)
    if missing:
        return Step(copied=False, size_bytes=missing)
    return Step(copied=True, size_bytes=min(rest, equal_bytes))


def are_equal(sizes: Sequence[int]) -> bool:
    """Whether all sizes are equal, except for the last, which may be smaller."""
    return all(size == sizes[0] for size in sizes[:-1]) and (not sizes or sizes[-1] <= sizes[0])


def copied_size(limits: Limits, number: int, before_bytes: int, left_bytes: int) -> int:
    """Return how many of `left_bytes` part `number` copies, without leaving a rest that is too
    small."""
    size = part_size(limits.copied_part_bytes, before_bytes)
    if left_bytes <= size:
        return left_bytes
    if left_bytes - size >= min_size(limits, number + 1, before_bytes + size):
        return size
    return left_bytes if left_bytes <= MAX_PART_BYTES else left_bytes // 2
