"""Bytes for large objects, made when a test first uses them: collection must not take seconds."""

import functools
import random


@functools.cache
def random_bytes(seed: int, size: int) -> bytes:
    """Return the same bytes for the same arguments."""
    return random.Random(seed).randbytes(size)
