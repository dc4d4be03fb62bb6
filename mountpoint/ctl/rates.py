"""Pure: what has happened between two answers of a mount (`Answers.stats`), as numbers."""

from collections.abc import Mapping
from typing import Any


def difference(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what was added to each number; all of it, without `before`.

    Numbers that do not add up, such as the largest value, are those of `now`.
    """
    return {name: _less(name, value, (before or {}).get(name)) for name, value in now.items()}


#: What is no sum.
LEVELS = frozenset({"under_way", "least", "most", "at_s", "status"})


def _less(name: str, now: Any, before: Any) -> Any:
    if name in LEVELS or before is None:
        return now
    if isinstance(now, Mapping):
        return difference(now, before)
    if isinstance(now, list):
        return [value - (before[i] if i < len(before) else 0) for i, value in enumerate(now)]
    return now - before
