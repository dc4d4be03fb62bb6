"""What a mount answers to `mount-s3ctl`, where a mount on a server of the tests cannot show it."""

import pytest

from mountpoint.answers import Answers
from mountpoint.config import BucketConfig, Config, FileSystemConfig, MountConfig
from mountpoint.log_render import Redactor
from mountpoint.logs import Recent
from mountpoint.meters import Meters
from mountpoint.s3.endpoint import resolve
from tests.unit.mounted import mounted


@pytest.mark.parametrize(
    ("endpoint_url", "is_aws"),
    [
        (None, True),
        ("https://s3.eu-west-1.amazonaws.com", True),
        ("http://127.0.0.1:9000", False),
    ],
)
def test_whose_prices_are_meant(endpoint_url: str | None, is_aws: bool) -> None:
    """AWS is also AWS where its endpoint was given: `stats` shows its prices."""
    bucket = BucketConfig("bucket", endpoint_url=endpoint_url, force_path_style=True)
    config = Config(bucket, MountConfig("/mnt"), FileSystemConfig(0, 0))
    endpoint = resolve(bucket, "eu-west-1")
    with mounted({}) as world:
        answers = Answers(config, endpoint, world.fs, world.budget, Meters(), Recent(Redactor([])))
        status = answers.status({})
    assert status["is_aws"] is is_aws
    assert status["endpoint"] == endpoint.host
