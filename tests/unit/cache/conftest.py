"""A cache directory on a real disk."""

from pathlib import Path

import pytest

from mountpoint.cache.directory import CacheDirectory


@pytest.fixture
def directory(tmp_path: Path) -> CacheDirectory:
    """An empty cache."""
    return CacheDirectory.open(str(tmp_path / "cache"))
