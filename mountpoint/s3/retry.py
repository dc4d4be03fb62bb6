"""Deadlines and retries: how long anyone waits for S3.

Nothing in this program waits for S3 without a bound, and every wait ends when the mount
goes away. One request is one try (the client's own retries are off, because its stall
detection takes 30 seconds a try and cannot be set); who waits for the answer drives the
retries, so there is no timer thread and no retry that nobody wants any more.
"""

import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from mountpoint.errors import Interrupted, S3Error, Stalled
from mountpoint.metrics.counters import Counters

T = TypeVar("T")

#: The first retry comes at once: mostly it is a pooled connection that the server closed.
#: Then waits double from FIRST_PAUSE_S, with full jitter as AWS recommends for SlowDown.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


def pause_s(attempt: int, jitter: float) -> float:
    """Return the seconds to wait before try number `attempt` (the first is 0). Pure.

    `jitter` is a random number in [0, 1).
    """
    if attempt < 2:
        return 0.0
    longest = min(FIRST_PAUSE_S * 2.0 ** min(attempt - 2, 10), LONGEST_PAUSE_S)
    return longest * (0.5 + jitter / 2)


class RetryPolicy:
    """How long to wait, in one try and in total; shared by all that wait.

    `stopping` is set when the mount goes away: from then on nobody waits. `most_tries` is
    for mounting, where a wrong endpoint should be said quickly. `counters` None: nobody
    asks how many retries there were. `once_s` is for what is asked in one try because it can
    be done in another way: half of the total is left for that.
    """

    def __init__(
        self,
        *,
        try_s: float,
        total_s: float,
        stopping: threading.Event,
        most_tries: int | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.try_s = try_s
        self.total_s = total_s
        self.once_s = min(try_s, total_s / 2)
        self.most_tries = most_tries
        self.stopping = stopping
        self.counters = counters or Counters()

    def begin(self, within: "Attempts | None" = None) -> "Attempts":
        """Start waiting for one thing; as a part of `within`, for no longer than that."""
        attempts = Attempts(self)
        if within is not None:
            attempts.until_s = within.until_s
        return attempts

    def ask(
        self,
        start: Callable[[], "Future[T]"],
        within: "Attempts | None" = None,
        *,
        more_s: float = 0.0,
    ) -> "RetryingCall[T]":
        """Make a request now; its answer is waited for later.

        `more_s` is how much longer than others it may take, each try and all together.
        """
        attempts = self.begin(within)
        attempts.until_s += more_s
        return RetryingCall(start, attempts, self.try_s + more_s)


class RetryingCall(Generic[T]):
    """One metadata request under way, with its retries."""

    def __init__(
        self, start: Callable[[], "Future[T]"], attempts: "Attempts", try_s: float
    ) -> None:
        self._start = start
        self._try_s = try_s
        self._tries = attempts  # begun before: who asks twice at once waits for no longer
        self._future = start()
        self.retried = False  # so an earlier try may have been done

    def answer(self) -> T:
        """Wait for the answer. Raises the S3Error that no retry helped, or Interrupted."""
        attempts = self._tries
        while True:
            try:
                return self._future.result(min(self._try_s, max(attempts.left_s(), 0.0)))
            except TimeoutError:
                self._future.cancel()
                error: S3Error = Stalled(f"no answer within {self._try_s:.0f} s")
            except S3Error as failure:
                error = failure
            if not attempts.again(error):
                raise error
            self.retried = True
            self._future = self._start()


class Attempts:
    """The tries of one request: how many there were, and when to give up.

    `total_s` and `most_tries` are the patience's, where they are not given.
    """

    def __init__(
        self,
        retry_policy: RetryPolicy,
        *,
        total_s: float | None = None,
        most_tries: int | None = None,
    ) -> None:
        self._retry_policy = retry_policy
        self._attempt = 0
        self._most_tries = most_tries or retry_policy.most_tries
        self.begun_s = time.monotonic()
        self.until_s = self.begun_s + (retry_policy.total_s if total_s is None else total_s)

    def left_s(self) -> float:
        """Seconds until the total runs out."""
        return self.until_s - time.monotonic()

    def pause_s(self) -> float | None:
        """Count a try that failed; seconds to wait before the next, None if there is no time."""
        self._attempt += 1
        wait_s = pause_s(self._attempt, random.random())
        if self._attempt == self._most_tries or wait_s >= self.left_s():
            return None
        self._retry_policy.counters.add("retries")
        return wait_s

    def again(self, error: S3Error) -> bool:
        """Pause before the next try; False where `error` allows none, or time is up.

        Raises Interrupted when the mount goes away.
        """
        if not error.retryable:
            return False
        wait_s = self.pause_s()
        if wait_s is None or self._attempt >= (error.most_tries or math.inf):
            return False
        if self._retry_policy.stopping.wait(wait_s):
            raise Interrupted("the mount is going away")
        return True


class Allowance:
    """One total for all waits in a row that bring nothing: those for one open file. Thread-safe.

    Once it is used up each wait is for one try, until one brings something. So a program that
    opens and reads a file, or the kernel that reads a page once more after an error, does not
    wait for the total anew.
    """

    def __init__(self, retry_policy: RetryPolicy) -> None:
        # dependencies
        self._retry_policy = retry_policy
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._waited_s = 0.0
        self._used_up = False

    def begin(self) -> Attempts:
        """Start a wait, for what is left."""
        with self._lock:
            left_s = self._retry_policy.total_s - self._waited_s
            if self._used_up or left_s <= 0:
                return Attempts(self._retry_policy, total_s=self._retry_policy.once_s, most_tries=1)
            return Attempts(self._retry_policy, total_s=left_s)

    def brought(self) -> None:
        """Note that a wait has brought something: the next ones have the whole total."""
        with self._lock:
            self._waited_s = 0.0
            self._used_up = False

    def in_vain(self, attempts: Attempts, *, used_up: bool) -> None:
        """Note that a wait has ended and brought nothing; with `used_up` it was given up."""
        with self._lock:
            self._waited_s += time.monotonic() - attempts.begun_s
            self._used_up = self._used_up or used_up
