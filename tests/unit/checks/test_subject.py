"""Waits of checks."""

import threading

import pytest

from mountpoint.checks.subject import within
from mountpoint.errors import MountError


def test_a_wait_has_an_end() -> None:
    """A check without an answer is reported; errors pass through, even a timeout."""
    never = threading.Event()
    with pytest.raises(MountError, match="the oracle did not answer within 0 seconds"):
        within(0.05, "the oracle", "ask another", never.wait)
    never.set()
    assert within(5, "the oracle", "", lambda: 7) == 7

    def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        within(5, "the oracle", "", late)
