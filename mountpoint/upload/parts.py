"""Pure: how a file is cut into parts, which are sent or copied.

S3 takes 10,000 parts of 5 MiB to 5 GiB; all but the last must reach the least size
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html). How large a file becomes is
known at its end only, so parts grow with it.

Some stores want all parts but the last to have one size (Cloudflare R2:
https://developers.cloudflare.com/r2/objects/multipart-objects/). That of a file whose size is known
is `part_size` at its end, for 1,250 parts; others reach 10,000 parts of the size that they began
with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mountpoint.config import LEAST_PART_BYTES, MIB, MOST_PART_BYTES

MOST_PARTS = 10_000
#: No object can be larger: as many parts as there may be, each as large as it may be.
MOST_OBJECT_BYTES = MOST_PARTS * MOST_PART_BYTES

#: A part is at least this share of what is before it: so 10,000 parts reach 5 TiB from the least
#: part size that can be chosen, and those of 8 MiB begin to grow at 10 GB. A file of 100 GiB ends
#: with parts of 80 MiB, one of 1 TiB with parts of 820 MiB, each of which has to be in memory.
GROWTH = 1250

#: So many parts may be as small as S3 takes them wherever they are, when ranges are copied: what
#: would be too small a part has to be read. Those after them, growing, reach 5 TiB still.
FREE_PARTS = 2_400


def part_size(least_bytes: int, before_bytes: int) -> int:
    """Return the size of the part that begins after `before_bytes` of the file."""
    grown = -(-before_bytes // GROWTH)
    grown = -(-grown // MIB) * MIB
    return max(least_bytes, min(grown, MOST_PART_BYTES))


@dataclass(frozen=True, slots=True)
class Limits:
    """What parts may be. Other values than S3's are for tests.

    `copied_part_bytes` is how much the server copies in one request: several copy faster than
    one, and none should take longer than anyone waits for an answer.
    """

    least_part_bytes: int = LEAST_PART_BYTES
    copied_part_bytes: int = 128 * MIB


S3_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Step:
    """How the next `size_bytes` of a range become part of a file: copied, or read and sent."""

    copied: bool
    size_bytes: int


def least_size(limits: Limits, number: int, before_bytes: int) -> int:
    """Return the least size of part `number`, after `before_bytes`, that is not the last.

    A file that is put together of many small ranges must not run out of numbers.
    """
    if number <= FREE_PARTS:
        return limits.least_part_bytes
    return part_size(limits.least_part_bytes, before_bytes)


def next_step(
    limits: Limits,
    number: int,
    before_bytes: int,
    gathered_bytes: int,
    source_bytes: int,
    left_bytes: int,
) -> Step:
    """Return what to do with the first of `left_bytes` of a source of `source_bytes`.

    `number` is the next part's, `gathered_bytes` wait to be sent as that, after `before_bytes`; a
    copied part goes after them, so they must be enough for one.
    """
    # Of a source of 5 MB nothing but the whole can be copied:
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPartCopy.html
    if source_bytes <= limits.least_part_bytes:
        return Step(copied=False, size_bytes=left_bytes)
    missing = 0
    if gathered_bytes:
        missing = max(least_size(limits, number, before_bytes) - gathered_bytes, 0)
        number += 1
    at = before_bytes + gathered_bytes + missing
    if left_bytes - missing < least_size(limits, number, at):
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
    if source_bytes <= limits.least_part_bytes:
        return Step(copied=False, size_bytes=left_bytes)
    missing = equal_bytes - gathered_bytes if gathered_bytes else 0
    rest = left_bytes - missing
    if rest <= 0 or (rest < equal_bytes and not last):
        return Step(copied=False, size_bytes=left_bytes)
    if missing:
        return Step(copied=False, size_bytes=missing)
    return Step(copied=True, size_bytes=min(rest, equal_bytes))


def are_equal(sizes: Sequence[int]) -> bool:
    """Whether parts of these sizes have one size, but for the last, which may be smaller."""
    return all(size == sizes[0] for size in sizes[:-1]) and (not sizes or sizes[-1] <= sizes[0])


def copied_size(limits: Limits, number: int, before_bytes: int, left_bytes: int) -> int:
    """Return how much of `left_bytes` copied part `number` takes: no too small rest is left."""
    size = part_size(limits.copied_part_bytes, before_bytes)
    if left_bytes <= size:
        return left_bytes
    if left_bytes - size >= least_size(limits, number + 1, before_bytes + size):
        return size
    return left_bytes if left_bytes <= MOST_PART_BYTES else left_bytes // 2
