"""The number of cases: few of each kind in `make test`, a quarter of them in `make check`, and ten
times as many in `make soak`.

`MOUNT_S3_TEST_SOAK` is the factor. Random cases come from `SEED`, which differs in each run and is
printed at its start. To repeat a run, set `MOUNT_S3_TEST_SEED` to its seed.
"""

import os
import random
from collections.abc import Iterator

from hypothesis import HealthCheck, settings

FACTOR = float(os.environ.get("MOUNT_S3_TEST_SOAK", "1"))
#: The factor of what there is one of in `make test`.
TIMES = max(round(FACTOR), 1)

#: pytest-xdist's workers inherit the seed, because all of them must collect the same cases.
SEED = int(os.environ.setdefault("MOUNT_S3_TEST_SEED", str(random.randrange(1 << 32))))

_counted = 0

# The time to draw a case says more about the load of the machine than about the test.
settings.register_profile(
    "tests",
    max_examples=round(40 * FACTOR),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


def examples(count: int) -> int:
    """Return the number of hypothesis' examples, if `make test` uses `count`."""
    return max(round(count * FACTOR), 1)


def rounds(count: int) -> Iterator[int]:
    """Yield the numbers of the rounds of a test, if `make test` has `count`; each is a case."""
    for number in range(examples(count)):
        count_cases(1)
        yield number


def count_cases(count: int) -> None:
    """Count cases that a test runs by itself, for the table of a soak (`soak_report`)."""
    global _counted
    _counted += count


def counted() -> int:
    """Return how many cases the tests of this process have counted."""
    return _counted


def seeds(*, fixed: int = 1, drawn: int = 0) -> dict[str, int]:
    """Return the seeds of random cases, by the name of the case, which is the same in every run.

    `make soak` draws additional seeds for every test. A test that compares costs with a bound draws
    none in `make test`: one seed in a thousand that exceeds the bound says nothing about a change.
    """
    drawn = drawn * TIMES + TIMES - 1
    return {f"seed{index}": index for index in range(1, fixed + 1)} | {
        f"drawn{index}": (SEED + index) % (1 << 32) for index in range(1, drawn + 1)
    }
