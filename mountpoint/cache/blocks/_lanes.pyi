"""Types of the extension module; its docstrings are in `_lanes.pyx`."""

from mountpoint.cache.blocks._files import CachedVersion
from mountpoint.native._lane import LaneSource

def lane_source(cached: CachedVersion, other: LaneSource | None) -> LaneSource: ...
