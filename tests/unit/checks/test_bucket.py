"""Checks of the bucket: objects chosen for reading."""

import pytest

from mountpoint.checks import bucket
from mountpoint.checks.subject import Objects
from mountpoint.config import CacheConfig
from mountpoint.errors import MountError
from mountpoint.s3.client import ObjectInfo
from tests.unit.checks.subjects import subject


def see(*infos: ObjectInfo) -> Objects:
    """Return the summary of a listing of these objects."""
    found = Objects()
    for info in infos:
        bucket._see(found, info)
    return found


def test_objects_chosen_for_reading() -> None:
    """The first readable object and the first large one: not archived, empty or without ETag."""
    large = bucket.LARGE_BYTES
    empty = ObjectInfo(b"empty", 0, 0, '"a"')
    archived = ObjectInfo(b"archived", large, 0, '"a"', "GLACIER")
    unnamed = ObjectInfo(b"unnamed", large, 0, "")
    small = ObjectInfo(b"small", large - 1, 0, '"a"')
    restored = ObjectInfo(b"restored", large, 0, '"a"', "DEEP_ARCHIVE", restored=True)
    last = ObjectInfo(b"last", 2 * large, 0, '"a"')
    found = see(empty, archived, unnamed, small, restored, last)
    assert (found.readable, found.large) == (small, restored)
    assert (found.seen, found.archived, found.largest_bytes) == (6, 1, 2 * large)


def test_no_shared_cache() -> None:
    """Without a bucket for it, nothing is asked."""
    assert bucket.cache_bucket(subject()).outcome == "skipped"


def test_a_shared_cache_in_the_mounted_bucket() -> None:
    """It is refused before a request is sent."""
    with pytest.raises(MountError, match="cannot be its own cache"):
        bucket.cache_bucket(subject(cache=CacheConfig(bucket="bucket")))
