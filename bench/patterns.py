"""The orders in which programs read: offsets and sizes. Pure.

A piece is `(offset, size)`, as for pread(2). Random patterns come from a seed, so that each run and
each version of the program reads the same pieces.
"""

import random
from collections.abc import Iterable, Iterator
from typing import TypeVar

from bench.objects import KIB, MIB

T = TypeVar("T")
Piece = tuple[int, int]

PAGE_BYTES = 4 * KIB

#: Parquet: a footer of a few KiB, within the last 64 KiB, which readers fetch in one read; row
#: groups, of which a query reads some columns; column chunks, which are read in buffers.
FOOTER_BYTES = 64 * KIB
ROW_GROUP_BYTES = 16 * MIB
CHUNK_BYTES = (MIB, 4 * MIB)
CHUNKS_PER_GROUP = 2
CHUNK_READ_BYTES = 256 * KIB

#: Zip: the end record and the directory's entries without comments (APPNOTE.TXT 4.3.12, 4.3.16)
#: with names of about 30 bytes; each member has its own header in front.
END_BYTES = 22
ENTRY_BYTES = 46 + 30
MEMBER_HEADER_BYTES = 30
MEMBER_BYTES = (10 * KIB, 200 * KIB)
MEMBER_READ_BYTES = 64 * KIB

#: Safetensors: the tensors of a model, which are loaded one by one.
TENSOR_BYTES = (256 * KIB, 2 * MIB)


def pieces(start: int, stop: int, size: int) -> Iterator[Piece]:
    """Cut [start, stop) into pieces of `size`, in order; the last may be shorter."""
    for offset in range(start, stop, size):
        yield offset, min(size, stop - offset)


def backwards(start: int, stop: int, size: int) -> Iterator[Piece]:
    """The same pieces, from the last to the first."""
    return reversed(list(pieces(start, stop, size)))


def strides(stop: int, size: int, every: int) -> Iterator[Piece]:
    """The first `size` bytes of every `every` bytes, in order."""
    for offset in range(0, stop - size + 1, every):
        yield offset, size


def at_random(stop: int, size: int, count: int, seed: int) -> Iterator[Piece]:
    """`count` different blocks of `size` bytes, at multiples of it."""
    for block in random.Random(seed).sample(range(stop // size), count):
        yield block * size, size


def in_turn(streams: Iterable[Iterable[T]]) -> Iterator[T]:
    """One item of each stream in turn, until all streams have ended."""
    waiting = [iter(stream) for stream in streams]
    while waiting:
        for stream in waiting.copy():
            try:
                yield next(stream)
            except StopIteration:
                waiting.remove(stream)


def in_random_turn(streams: Iterable[Iterable[T]], seed: int) -> Iterator[T]:
    """The next item of a random stream, until all have ended, as in a merge of sorted runs."""
    source = random.Random(seed)
    waiting = [iter(stream) for stream in streams]
    while waiting:
        stream = source.choice(waiting)
        try:
            yield next(stream)
        except StopIteration:
            waiting.remove(stream)


def parquet(size: int, seed: int) -> Iterator[Piece]:
    """The footer of a file of `size` bytes, then some column chunks of each row group."""
    source = random.Random(seed)
    yield size - FOOTER_BYTES, FOOTER_BYTES
    slot = ROW_GROUP_BYTES // CHUNKS_PER_GROUP
    for start in range(0, size - ROW_GROUP_BYTES, slot):
        length = source.randint(*CHUNK_BYTES)
        offset = start + source.randrange(slot - length)
        yield from pieces(offset, offset + length, CHUNK_READ_BYTES)


def zip_archive(size: int, seed: int) -> tuple[list[Piece], list[list[Piece]]]:
    """The reads of an archive of `size` bytes: its directory, then each member in random order."""
    source = random.Random(seed)
    members: list[list[Piece]] = []
    offset = 0
    while True:
        stop = offset + MEMBER_HEADER_BYTES + source.randint(*MEMBER_BYTES)
        directory = (len(members) + 1) * ENTRY_BYTES
        if stop + directory + END_BYTES > size:
            break
        head = (offset, MEMBER_HEADER_BYTES)
        body = pieces(offset + MEMBER_HEADER_BYTES, stop, MEMBER_READ_BYTES)
        members.append([head, *body])
        offset = stop
    directory = len(members) * ENTRY_BYTES
    source.shuffle(members)
    return [(size - END_BYTES, END_BYTES), (size - END_BYTES - directory, directory)], members


def tensors(size: int, seed: int) -> list[Piece]:
    """All tensors of a file of `size` bytes, in random order, aligned to pages."""
    source = random.Random(seed)
    found: list[Piece] = []
    offset = 0
    while offset < size:
        length = source.randrange(*TENSOR_BYTES, PAGE_BYTES)
        found.append((offset, min(length, size - offset)))
        offset += length
    source.shuffle(found)
    return found
