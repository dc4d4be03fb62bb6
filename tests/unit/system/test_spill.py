"""Directories for temporary files."""

import pytest

from mountpoint.system import spill as spill_module
from mountpoint.system.mounts import mounts
from mountpoint.system.spill import default_directories


def test_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """TMPDIR if it is set; otherwise directories that are not in memory."""
    assert default_directories({"TMPDIR": "/a"}) == ["/a"]
    monkeypatch.setattr(spill_module, "IN_MEMORY", frozenset())
    assert default_directories({}) == ["/var/tmp", "/tmp"]
    kinds = {each.kind for each in mounts()}
    monkeypatch.setattr(spill_module, "IN_MEMORY", kinds)
    assert default_directories({"TMPDIR": ""}) == []
