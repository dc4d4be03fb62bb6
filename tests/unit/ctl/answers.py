"""Made-up answers of a mount."""

from typing import Any

from mountpoint.metrics.counters import Counters
from mountpoint.metrics.recorder import Meters

STATUS = {
    "bucket": "bucket", "prefix": "", "directory": "/mnt", "pid": 7, "uptime_s": 100.0,
    "rss_bytes": 50_000_000, "open_files": 1, "being_written": [], "is_aws": True,
    "region": "eu-central-1",
}  # fmt: skip


def answer(meters: Meters, counters: Counters, at_s: float) -> dict[str, Any]:
    """Return a mount's answer."""
    return {
        "at_s": at_s,
        "status": STATUS,
        "counters": counters.snapshot(),
        "meters": meters.snapshot(),
    }
