"""Pure: the differences between two answers of a mount (`ControlCommands.stats`)."""

from collections.abc import Mapping
from typing import Any

from mountpoint.metrics import recorder

#: Values that are no sums.
LEVELS = frozenset({"under_way", "at_s", "status", "threads"})


def difference(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the growth of each number, or all of it without `before`. Levels are as in `now`."""
    return {name: _less(name, value, (before or {}).get(name)) for name, value in now.items()}


def _less(name: str, now: Any, before: Any) -> Any:
    if name in LEVELS or before is None:
        return now
    if not isinstance(now, Mapping):
        return now - before
    return recorder.difference(before, now) if "buckets" in now else difference(now, before)
