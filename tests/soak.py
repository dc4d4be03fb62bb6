"""How much is tried: `make test` tries a little of each kind, `make soak` ten times as much.

Cases that are drawn at random come from `SEED`, which is another in each run and is printed at its
start; `MOUNT_S3_TEST_SEED` has a run's cases tried again.
"""

import os
import random

SOAK = bool(os.environ.get("MOUNT_S3_TEST_SOAK"))

#: pytest-xdist's workers inherit it: all of them have to collect the same cases.
SEED = int(os.environ.setdefault("MOUNT_S3_TEST_SEED", str(random.randrange(1 << 32))))


def examples(count: int) -> int:
    """Return how many examples hypothesis tries where `make test` tries `count`."""
    return 10 * count if SOAK else count


def seeds() -> dict[str, int]:
    """Return the seeds of random cases, by the name that a case has in every run."""
    drawn = {f"drawn{index}": SEED + index for index in range(10 if SOAK else 1)}
    return {"fixed": 1} | drawn
