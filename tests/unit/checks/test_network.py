"""Checks of the connection and the clock."""

from typing import Any

import pytest

from mountpoint.checks import network
from mountpoint.s3 import network_probe
from mountpoint.s3.aws.endpoint import Endpoint
from tests.unit.checks.subjects import subject


@pytest.mark.parametrize(
    ("skew_s", "signed", "outcome", "said"),
    [
        (0.4, True, "ok", "within a minute"),
        (-59.4, True, "ok", "within a minute"),
        (60, True, "warning", "60 s behind"),
        (-899, True, "warning", "15 min ahead of"),
        (900, True, "failed", "15 min behind"),
        (-7200, True, "failed", "2 h ahead of"),
        (7200, False, "warning", "2 h behind"),
        (None, True, "skipped", "no date"),
    ],
)
def test_clock(
    monkeypatch: pytest.MonkeyPatch,
    skew_s: float | None,
    signed: bool,
    outcome: str,
    said: str,
) -> None:
    """More than a minute is a warning; from 15 minutes on S3 refuses signatures."""
    monkeypatch.setattr(network_probe, "skew_s", lambda *_: skew_s)
    asked: Any = subject()
    asked.connection = asked.endpoint = object()
    asked.credentials = object() if signed else None
    result = network.clock(asked)
    assert result.outcome == outcome
    assert said in result.finding
    assert bool(result.hint) == (outcome in ("warning", "failed"))


def test_a_connection_that_is_refused_is_said_as_mounting_says_it() -> None:
    """A refused connection is reported as in mounting: host, reason and hint."""
    asked = subject()
    asked.endpoint = Endpoint("https", "s3.example.com", "", "us-east-1", "s3", "v4")
    error = network._unreachable(asked, ConnectionRefusedError(111, "Connection refused"), "eth1")
    assert error.what == "no answer from s3.example.com (Connection refused by eth1)"
    assert "--endpoint-url" in error.hint
