"""Wait for other threads."""

import time
from collections.abc import Callable

from tests.unit.fake_client import SAFE_S


def until(condition: Callable[[], object], within_s: float = SAFE_S) -> None:
    """Wait until a condition is true."""
    until_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.001)
