"""What a process has learned from S3, for the next one."""

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from mountpoint.config import BucketConfig
from mountpoint.fs.session.log import SessionLog, new_log
from mountpoint.mount.kept import reached
from mountpoint.s3.aws.endpoint import resolve
from mountpoint.s3.capabilities import Capabilities

BUCKET = BucketConfig("bucket", b"dir/\xff/", endpoint_url="https://store.example.com")


def test_the_next_process() -> None:
    """It finds endpoint and features, for the same settings of the same bucket."""
    file = new_log()
    try:
        endpoint = resolve(BUCKET, "eu-west-1")
        client: Any = SimpleNamespace(
            endpoint=endpoint, capabilities=Capabilities(starts_after=False, checksums=False)
        )
        reached.note(SessionLog(file, lambda file: None), BUCKET, client)
        log = SessionLog(file, lambda file: None)
        found = reached.find(log, BUCKET)
        assert found is not None
        assert found.endpoint == endpoint
        assert found.features == {
            "pages_by_token": True,
            "starts_after": False,
            "matches": True,
            "takes_checksum_mode": True,
        }
        assert reached.find(log, replace(BUCKET, force_path_style=True)) is None
        assert reached.find(log, replace(BUCKET, name="other")) is None
    finally:
        os.close(file)
