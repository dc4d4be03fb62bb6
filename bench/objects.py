"""The bucket that the workloads read, and the comparison of the bytes that they read.

Each object is a piece of an endless tape that repeats TAPE_BYTES random bytes; the key determines
where it starts. TAPE_BYTES is prime, so within 4 GiB two offsets that are whole pages, blocks or
parts apart differ: eight bytes identify an object and an offset. The bytes do not compress, so
compression saves a server no work.
"""

import random
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

KIB, MIB = 1 << 10, 1 << 20

TAPE_BYTES = 1_048_583
#: Bytes that are compared at each end of a piece.
WORD_BYTES = 8
TAPE = random.Random(1).randbytes(TAPE_BYTES)

LARGE = "large"
LARGE_BYTES = 1024 * MIB
QUARTER_BYTES = 256 * MIB
SIXTEENTH_BYTES = 128 * MIB
MEDIUM_BYTES = 5 * MIB
MANY_BYTES = 4 * MIB
SMALL_BYTES = 100 * KIB
TREE_BYTES = 100
FOLDER_BYTES = 10
#: One is named as a Parquet file and one as an archive, because the mount reads by name.
QUARTERS = ["quarter/0.parquet", "quarter/1.zip", "quarter/2", "quarter/3"]
SIXTEENTHS = [f"sixteen/{number:02}" for number in range(16)]
MEDIUM = [f"medium/{number:02}" for number in range(40)]
MANY = [f"many/{number:02}" for number in range(64)]
SMALL = [f"small/{number:03}" for number in range(500)]
TREE = [f"tree/{folder:02}/{number:02}" for folder in range(50) for number in range(20)]
#: Ten pages of a listing.
FOLDER = [f"folder/{number:05}" for number in range(10_000)]

SIZES = {
    LARGE: LARGE_BYTES,
    **dict.fromkeys(QUARTERS, QUARTER_BYTES),
    **dict.fromkeys(SIXTEENTHS, SIXTEENTH_BYTES),
    **dict.fromkeys(MEDIUM, MEDIUM_BYTES),
    **dict.fromkeys(MANY, MANY_BYTES),
    **dict.fromkeys(SMALL, SMALL_BYTES),
    **dict.fromkeys(TREE, TREE_BYTES),
    **dict.fromkeys(FOLDER, FOLDER_BYTES),
}

#: Larger objects are uploaded in parts of this size, by UPLOAD_THREADS threads.
UPLOAD_BYTES = 64 * MIB
UPLOAD_THREADS = 4


class WrongBytes(Exception):
    """A read returned other bytes than the object's."""


def content(key: str, start: int, stop: int) -> bytes:
    """Return the bytes [start, stop) of an object. Pure."""
    at = (zlib.crc32(key.encode()) + start) % TAPE_BYTES
    size = stop - start
    if at + size <= TAPE_BYTES:
        return TAPE[at : at + size]
    return (TAPE * ((at + size) // TAPE_BYTES + 1))[at : at + size]


def check(key: str, offset: int, size: int, piece: bytes | memoryview) -> None:
    """Raise WrongBytes unless a piece has its size, and the right bytes at both of its ends."""
    if len(piece) != size:
        raise WrongBytes(f"{key}: {len(piece)} bytes at {offset} instead of {size}")
    for start in (0, max(size - WORD_BYTES, 0)):
        stop = min(start + WORD_BYTES, size)
        if piece[start:stop] != content(key, offset + start, offset + stop):
            raise WrongBytes(f"{key}: wrong bytes at {offset + start}")


def fill(client: Any, bucket: str) -> None:
    """Upload all objects, with a boto3 client of at least UPLOAD_THREADS connections."""
    with ThreadPoolExecutor(UPLOAD_THREADS) as pool:
        list(pool.map(lambda key: _put(client, bucket, key), SIZES))


def _put(client: Any, bucket: str, key: str) -> None:
    where = {"Bucket": bucket, "Key": key}
    if SIZES[key] <= UPLOAD_BYTES:
        client.put_object(**where, Body=content(key, 0, SIZES[key]))
        return
    upload = client.create_multipart_upload(**where)["UploadId"]
    parts = []
    for number, (start, stop) in enumerate(_ranges(SIZES[key]), 1):
        body = content(key, start, stop)
        part = client.upload_part(**where, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})


def _ranges(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, UPLOAD_BYTES):
        yield start, min(start + UPLOAD_BYTES, size)
