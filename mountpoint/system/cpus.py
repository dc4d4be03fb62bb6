"""The processors that this process may use."""

import math
import os

from mountpoint.system.cgroup import cpu_limit


def usable_cores() -> int:
    """Return the number of processors that affinity and control groups allow, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    limit = cpu_limit()
    return allowed if limit is None else max(min(allowed, math.ceil(limit)), 1)
