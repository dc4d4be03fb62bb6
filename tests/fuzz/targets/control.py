"""A line that a mount's control socket receives."""

import json
from typing import Any

from mountpoint.mount.control import answer_to


def read(data: bytes) -> None:
    """Answer it: always with an object in JSON."""

    def echo(request: Any) -> dict[str, Any]:
        return {"length": len(request)}

    answer = answer_to({"status": echo}, data)
    assert isinstance(json.loads(json.dumps(answer)), dict)
