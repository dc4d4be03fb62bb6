"""Answers of a mount to `mount-s3ctl` that the mounts of the tests cannot show."""

import itertools
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mountpoint.cache.block_cache import BlockCache
from mountpoint.cli import main as cli
from mountpoint.config import BucketConfig, ChangeConfig, Config, FileSystemConfig, MountConfig
from mountpoint.errors import MountError
from mountpoint.fs.inodes import ROOT
from mountpoint.log.format import Redactor
from mountpoint.log.setup import RecentLines
from mountpoint.metrics.export.families import LEVELS
from mountpoint.metrics.recorder import Meters
from mountpoint.mount import commands
from mountpoint.mount.commands import ControlCommands
from mountpoint.s3.aws.endpoint import Endpoint, resolve
from mountpoint.s3.client import ObjectInfo
from tests.unit.mounted import Mounted, mounted

CONFIG = Config(BucketConfig("bucket"), MountConfig("/mnt"), FileSystemConfig(0, 0))
ENDPOINT = resolve(CONFIG.bucket, "eu-west-1")


def commands_of(
    world: Mounted,
    config: Config,
    endpoint: Endpoint,
    meters: Meters,
    cache: "FakeCache | None" = None,
) -> ControlCommands:
    """Return the commands of a mount on the native plane."""
    recent = RecentLines(Redactor([]))
    return ControlCommands(
        config,
        endpoint,
        world.fs,
        world.budget,
        meters,
        recent,
        data_plane="native",
        cache=cast(BlockCache | None, cache),
    )


@pytest.mark.parametrize(
    ("endpoint_url", "is_aws"),
    [
        (None, True),
        ("https://s3.eu-west-1.amazonaws.com", True),
        ("http://127.0.0.1:9000", False),
    ],
)
def test_aws_prices_for_aws_endpoints(endpoint_url: str | None, is_aws: bool) -> None:
    """An endpoint URL of AWS is also AWS: `stats` shows its prices."""
    bucket = BucketConfig("bucket", endpoint_url=endpoint_url, force_path_style=True)
    config = Config(bucket, MountConfig("/mnt"), FileSystemConfig(0, 0))
    endpoint = resolve(bucket, "eu-west-1")
    with mounted({}) as world:
        answers = commands_of(world, config, endpoint, Meters())
        status = answers.status({})
    assert status["is_aws"] is is_aws
    assert status["endpoint"] == endpoint.host


def test_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are averages over the last ten seconds, or since the mount."""
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    meters = Meters()
    with mounted({}) as world:
        answers = commands_of(world, CONFIG, ENDPOINT, meters)

        def rates_after(seconds: int, read_bytes: int) -> tuple[float, float]:
            for _ in range(seconds):
                clock.now_s += 1
                meters.read(read_bytes)
                answers.sweep()
            rates = answers.status({})["rates"]
            return rates["over_s"], rates["read_bytes_per_s"]

        assert rates_after(2, 1000) == (2, 1000)
        assert rates_after(8, 500) == (10, 600)
        assert rates_after(30, 50) == (10, 50)
        meters.request("GetObject").end(500)
        meters.request("GetObject").end(None)
        rates = answers.status({})["rates"]
        assert (rates["requests_per_s"], rates["failed_requests_per_s"]) == (0.2, 0.1)


@pytest.mark.parametrize(
    ("read_only", "change", "options"),
    [
        (False, ChangeConfig(), []),
        (True, ChangeConfig(allow_delete=True), []),
        (
            False,
            ChangeConfig(allow_delete=True, allow_rename=True, staging_directory="/scratch"),
            ["--allow-delete", "--allow-rename", "--staged-writes /scratch"],
        ),
        (
            False,
            ChangeConfig(incremental_upload=True, allow_append=True, attributes="keep"),
            ["--allow-append", "--incremental-upload", "--attributes keep"],
        ),
    ],
)
def test_permitted_changes(read_only: bool, change: ChangeConfig, options: list[str]) -> None:
    """The options that permit more than new files; all of them exist."""
    config = replace(CONFIG, mount=MountConfig("/mnt", read_only=read_only), change=change)
    with mounted({}) as world:
        answers = commands_of(world, config, ENDPOINT, Meters())
        status = answers.status({})
    assert (status["read_only"], status["options"]) == (read_only, options)
    known = {name for option in cli.main.params for name in option.opts}
    assert {option.split()[0] for option in options} <= known


def test_levels() -> None:
    """The levels are those that the metrics export."""
    with mounted({}) as world:
        answers = commands_of(world, CONFIG, ENDPOINT, Meters())
        assert set(answers.levels()) == set(LEVELS)


class FakeCache:
    """A cache that lacks the second half of each version."""

    queued_bytes, queue_bytes = 5, 64
    usable = True

    def sweep(self) -> None:
        """Do nothing."""

    def missing(self, info: ObjectInfo, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the missing range."""
        assert (start, stop) == (0, info.size_bytes)
        return [(stop // 2, stop)]


def cached(world: Mounted, cache: FakeCache | None, paths: object) -> dict[str, Any]:
    """Return the answer to `cached`."""
    answers = commands_of(world, CONFIG, ENDPOINT, Meters(), cache)
    return answers.cached({"command": "cached", "paths": paths})


def test_cached() -> None:
    """Sizes and missing ranges, or reasons, in the order of the paths; keys that are no UTF-8."""
    objects = {b"p/a": b"x" * 10, b"p/d/\xff": b"x" * 4, b"p/empty": b""}
    with mounted(objects, prefix=b"p/", allow_overwrite=True) as world:
        world.fs.create(ROOT, b"new", os.O_WRONLY, 1)
        answer = cached(world, FakeCache(), ["a", "d/\udcff", "empty", "no", "d", "new", "d/no/x"])
    assert answer == {
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
    }


def test_cached_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many paths only some are answered; without any progress the first one is."""
    times = itertools.count(0.0, 0.3)
    with mounted({b"a": b"x"}) as world:
        answers = commands_of(world, CONFIG, ENDPOINT, Meters(), FakeCache())
        monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=lambda: next(times)))
        assert len(answers.cached({"paths": ["a"] * 10})["files"]) == 4
        monkeypatch.setattr(commands, "CACHED_S", -1.0)
        assert len(answers.cached({"paths": ["a"] * 10})["files"]) == 1


def test_a_cache_that_is_not_used() -> None:
    """An answer says that nothing is known at the moment."""
    cache = FakeCache()
    cache.usable = False
    with mounted({b"a": b"x"}) as world:
        answer = cached(world, cache, ["a"])
    assert (answer["files"], answer["usable"]) == ([], False)


@pytest.mark.parametrize("paths", [None, "a", [1], [None]])
def test_wrong_paths(paths: object) -> None:
    """Requests of another form are refused."""
    with mounted({}) as world, pytest.raises(MountError, match="'paths' are paths"):
        cached(world, FakeCache(), paths)


def test_no_cache() -> None:
    """A mount without a cache says so."""
    with mounted({}) as world, pytest.raises(MountError, match="no data cache"):
        cached(world, None, ["a"])
