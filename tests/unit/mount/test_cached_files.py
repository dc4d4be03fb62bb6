"""What a mount says about files in its data caches: the directory, the bucket, and both."""

import itertools
import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mountpoint.cache.block_cache import BlockCache
from mountpoint.cache.shared.cache import MAX_OBJECT_BYTES, SharedCache
from mountpoint.errors import AccessDenied
from mountpoint.fs.inodes import ROOT
from mountpoint.metrics.counters import Counters
from mountpoint.mount import cached_files
from mountpoint.mount.cached_files import CachedFiles
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from tests.unit.cache.objects import SAFE_S
from tests.unit.fake_client import FakeClient, Fault
from tests.unit.mounted import Mounted, mounted


class FakeCache:
    """A directory that lacks the second half of each version."""

    queued_bytes, queue_bytes = 5, 64
    usable = True

    def sweep(self) -> None:
        """Do nothing."""

    def missing(self, info: ObjectInfo, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the missing range."""
        assert (start, stop) == (0, info.size_bytes)
        return [(stop // 2, stop)]


@pytest.fixture
def bucket() -> Iterator[FakeClient]:
    """The bucket of the shared cache."""
    with FakeClient() as client:
        yield client


def shared_cache(bucket: FakeClient) -> SharedCache:
    """Return the shared cache of a mount."""
    policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event())
    return SharedCache(
        bucket, "cache-bucket", "store", "bucket", Counters(), policy, queue_bytes=1000
    )


def answer(
    world: Mounted, cache: FakeCache | None, shared: SharedCache | None, *paths: str
) -> dict[str, Any]:
    """Return the answer about some files."""
    files = CachedFiles(world.fs, cast(BlockCache | None, cache), shared)
    return files.answer([os.fsencode(path) for path in paths])


def test_a_directory() -> None:
    """Sizes and missing ranges, or reasons, in the order of the paths; keys that are no UTF-8."""
    objects = {b"p/a": b"x" * 10, b"p/d/\xff": b"x" * 4, b"p/empty": b""}
    with mounted(objects, prefix=b"p/", allow_overwrite=True) as world:
        world.fs.create(ROOT, b"new", os.O_WRONLY, 1)
        paths = ["a", "d/\udcff", "empty", "no", "d", "new", "d/no/x"]
        found = answer(world, FakeCache(), None, *paths)
    assert found == {
        "files": [
            {"size_bytes": 10, "missing": [(5, 10)]},
            {"size_bytes": 4, "missing": [(2, 4)]},
            {"size_bytes": 0, "missing": []},
            {"error": "it does not exist"},
            {"error": "it is a directory"},
            {"error": "it is being written"},
            {"error": "it does not exist"},
        ],
        "usable": True,
        "queued_bytes": 5,
        "queue_limit_bytes": 64,
        "sending_bytes": 0,
        "sending_limit_bytes": 0,
    }


@pytest.mark.parametrize("has_directory", [False, True])
def test_a_bucket(bucket: FakeClient, has_directory: bool) -> None:
    """What it lacks is to be fetched, or only sent if the directory has it; one HEAD tells."""
    large = bytes(MAX_OBJECT_BYTES + 2)
    objects = {b"a": b"x" * 10, b"empty": b"", b"large": large}
    cache = FakeCache() if has_directory else None
    with mounted(objects) as world:
        shared = shared_cache(bucket)
        found = answer(world, cache, shared, "a", "empty", "large", "no")
        half = len(large) // 2
        assert found["files"] == [
            {
                "size_bytes": 10,
                "missing": [(5, 10)] if has_directory else [(0, 10)],
                "unsent": True,
                "too_large": False,
            },
            {"size_bytes": 0, "missing": [], "unsent": False, "too_large": False},
            {
                "size_bytes": len(large),
                "missing": [(half, len(large))] if has_directory else [],
                "unsent": False,
                "too_large": not has_directory,
            },
            {"error": "it does not exist"},
        ]
        assert (found["usable"], found["sending_limit_bytes"]) == (True, 1000)
        assert answer(world, cache, shared, "a")["files"] == found["files"][:1]
        assert bucket.count("head") == 1


def test_a_bucket_that_fails(bucket: FakeClient) -> None:
    """Nothing is known at the moment, and the bucket is left alone."""
    with mounted({b"a": b"x", b"b": b"y"}) as world:
        shared = shared_cache(bucket)
        bucket.inject("head", Fault(error=AccessDenied("no")))
        for _ in range(2):
            found = answer(world, None, shared, "a", "b")
            assert (found["files"], found["usable"]) == ([], False)
        assert bucket.count("head") == 2


def test_answers_end_in_time(monkeypatch: pytest.MonkeyPatch, bucket: FakeClient) -> None:
    """Of many paths only some are answered; without any progress the first ones are."""
    times = itertools.count(0.0, 0.3)
    with mounted({b"a": b"x"}) as world:
        monkeypatch.setattr(cached_files, "time", SimpleNamespace(monotonic=lambda: next(times)))
        assert len(answer(world, FakeCache(), None, *["a"] * 10)["files"]) == 4
        monkeypatch.setattr(cached_files, "ANSWER_S", -1.0)
        assert len(answer(world, FakeCache(), None, *["a"] * 10)["files"]) == 1
        monkeypatch.setattr(cached_files, "ASKED", 3)
        assert len(answer(world, None, shared_cache(bucket), *["a"] * 10)["files"]) == 3


def test_a_directory_that_is_not_used() -> None:
    """An answer says that nothing is known at the moment."""
    cache = FakeCache()
    cache.usable = False
    with mounted({b"a": b"x"}) as world:
        found = answer(world, cache, None, "a")
    assert (found["files"], found["usable"]) == ([], False)
