"""Unit tests for the requests of an upload."""

import threading
from concurrent.futures import Future
from unittest.mock import Mock

import pytest

from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.requests import UploadRequest, UploadRequests


@pytest.mark.parametrize(
    ("attempt", "left_s", "allowed_s"),
    [(0, None, 5), (1, 60, 10), (3, 60, 40), (3, 12, 12), (3, 2, 5)],
)
def test_time_for_a_try(attempt: int, left_s: float | None, allowed_s: float) -> None:
    """Later tries may take longer, but not beyond the total; no try is shorter than the first."""
    policy = RetryPolicy(try_s=10, total_s=left_s or 60, stopping=threading.Event())
    requests = UploadRequests(Mock(), Mock(), policy)
    request: UploadRequest[None] = UploadRequest(Future, Mock(), Mock(), try_s=5)
    request.attempt, request.attempts = attempt, policy.begin() if left_s else None
    requests.send(request)
    assert request.late_s - request.began_s == pytest.approx(allowed_s, abs=0.5)
