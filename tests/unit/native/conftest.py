"""The test's own extension, and a check that a test leaves no memory in use."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from mountpoint.native import _blocks, _lane
from tests.unit.native import building


@pytest.fixture(scope="session")
def probe() -> Any:
    """The C functions of `mountpoint.native`."""
    return building.probe()


@pytest.fixture(autouse=True)
def _nothing_left(probe: Any) -> Iterator[None]:
    """Fail a test that leaves blocks in use, sources, or handles in the registry of lanes."""
    gc.collect()
    before = _blocks.held_bytes()[0], probe.sources(), _lane.registered()
    yield
    gc.collect()
    assert (_blocks.held_bytes()[0], probe.sources(), _lane.registered()) == before
