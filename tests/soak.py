"""How much is tried: `make test` tries a little of each kind, `make soak` ten times as much.

`MOUNT_S3_TEST_SOAK` says how many times as much. Cases that are drawn at random come from `SEED`,
which is another in each run and is printed at its start; `MOUNT_S3_TEST_SEED` has those of a run
tried again.
"""

import os
import random

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("MOUNT_S3_TEST_SOAK", "1"))

#: pytest-xdist's workers inherit it: all of them have to collect the same cases.
SEED = int(os.environ.setdefault("MOUNT_S3_TEST_SEED", str(random.randrange(1 << 32))))

# How long drawing takes says more about how busy the machine is than about the test.
settings.register_profile(
    "tests",
    max_examples=100 * TIMES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


def examples(count: int) -> int:
    """Return how many examples hypothesis tries where `make test` tries `count`."""
    return count * TIMES


def seeds(*, fixed: int = 1, drawn: int = 0) -> dict[str, int]:
    """Return the seeds of random cases, by the name that a case has in every run.

    `make soak` draws some for every case. A test that compares costs with a bound draws none
    in `make test`: a seed in a thousand that is past the bound says nothing about a change.
    """
    drawn = drawn * TIMES + TIMES - 1
    return {f"seed{index}": index for index in range(1, fixed + 1)} | {
        f"drawn{index}": (SEED + index) % (1 << 32) for index in range(1, drawn + 1)
    }
