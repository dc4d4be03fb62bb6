"""Pure: what has happened between two answers of a mount (`ControlCommands.stats`), as numbers."""

from collections.abc import Mapping
from typing import Any

from mountpoint.metrics import recorder as meters

#: What is no sum.
LEVELS = frozenset({"under_way", "at_s", "status", "threads"})


def difference(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what was added to each number; all of it, without `before`. Levels are as `now`."""
    return {name: _less(name, value, (before or {}).get(name)) for name, value in now.items()}


def _less(name: str, now: Any, before: Any) -> Any:
    if name in LEVELS or before is None:
        return now
    if not isinstance(now, Mapping):
        return now - before
    return meters.difference(before, now) if "buckets" in now else difference(now, before)
