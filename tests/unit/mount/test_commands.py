"""Answers of a mount to `mount-s3ctl` that the mounts of the tests cannot show."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mountpoint.cli import main as cli
from mountpoint.config import BucketConfig, ChangeConfig, Config, FileSystemConfig, MountConfig
from mountpoint.errors import MountError
from mountpoint.log.format import Redactor
from mountpoint.log.setup import RecentLines
from mountpoint.metrics.export.families import LEVELS
from mountpoint.metrics.recorder import Meters
from mountpoint.mount import commands
from mountpoint.mount.cached_files import CachedFiles
from mountpoint.mount.commands import ControlCommands
from mountpoint.s3.aws.endpoint import Endpoint, resolve
from tests.unit.mounted import Mounted, mounted

CONFIG = Config(BucketConfig("bucket"), MountConfig("/mnt"), FileSystemConfig(0, 0))
ENDPOINT = resolve(CONFIG.bucket, "eu-west-1")


def commands_of(
    world: Mounted,
    config: Config,
    endpoint: Endpoint,
    meters: Meters,
) -> ControlCommands:
    """Return the commands of a mount on the native plane, without a data cache."""
    recent = RecentLines(Redactor([]))
    return ControlCommands(
        config,
        endpoint,
        world.fs,
        world.budget,
        meters,
        recent,
        data_plane="native",
        cached_files=CachedFiles(world.fs, None, None),
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


@pytest.mark.parametrize("paths", [None, "a", [1], [None]])
def test_wrong_paths(paths: object) -> None:
    """Requests of another form are refused."""
    with mounted({}) as world, pytest.raises(MountError, match="'paths' are paths"):
        commands_of(world, CONFIG, ENDPOINT, Meters()).cached({"paths": paths})


def test_no_cache() -> None:
    """A mount without a cache says so."""
    with mounted({}) as world, pytest.raises(MountError, match="no data cache"):
        commands_of(world, CONFIG, ENDPOINT, Meters()).cached({"paths": ["a"]})
