"""The subject of checks."""

from dataclasses import replace
from typing import Any

from mountpoint.checks.subject import Subject, no_progress
from mountpoint.config import (
    BucketConfig,
    Config,
    FileSystemConfig,
    MountConfig,
)


def config(directory: str = "", **slices: Any) -> Config:
    """Return a configuration of a bucket."""
    plain = Config(BucketConfig("bucket"), MountConfig(directory), FileSystemConfig(0, 0))
    return replace(plain, **slices)


def subject(directory: str = "", environ: dict[str, str] | None = None, **slices: Any) -> Subject:
    """Return the subject of the checks."""
    return Subject(environ or {}, no_progress, config(directory, **slices))
