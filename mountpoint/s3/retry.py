"""Deadlines and retries for S3 requests.

Every wait for S3 has a bound and ends when the mount goes away. One request is one try: the CRT's
own retries are off, because its stall detection takes 30 seconds a try and cannot be configured.
The thread that waits for the answer also sends the retries. So there is no timer thread, and no
retry after its caller has given up.
"""

import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

import structlog

from mountpoint.errors import Interrupted, S3Error, Stalled
from mountpoint.metrics.counters import Counters
from mountpoint.s3.lost_answers import may_have_succeeded

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: The first retry has no pause: usually the server has closed a pooled connection.
#: Later pauses double from FIRST_PAUSE_S, with jitter as AWS recommends for SlowDown.
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
    """How long to wait for one try and in total; all callers share one policy.

    `stopping` is set when the mount goes away; no call waits after that. `max_tries` is for
    mounting, which should report a wrong endpoint quickly. `counters` counts the retries, if given.
    `once_s` limits a request that gets a single try because there is another way to do the same:
    half of the total is left for that other way.
    """

    def __init__(
        self,
        *,
        try_s: float,
        total_s: float,
        stopping: threading.Event,
        max_tries: int | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.try_s = try_s
        self.total_s = total_s
        self.once_s = min(try_s, total_s / 2)
        self.max_tries = max_tries
        self.stopping = stopping
        self.counters = counters or Counters()

    def begin(self, within: "Attempts | None" = None) -> "Attempts":
        """Start the deadline of one request; with `within`, not later than that deadline."""
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
        again: Callable[[S3Error], bool] | None = None,
    ) -> "RetryingCall[T]":
        """Send a request now; the caller waits for its answer later.

        `more_s` is added to the limit of each try and to the total, in seconds. `again`: see
        RetryingCall.
        """
        attempts = self.begin(within)
        attempts.until_s += more_s
        return RetryingCall(start, attempts, self.try_s + more_s, again)


class RetryingCall(Generic[T]):
    """One metadata request with its retries.

    `again` returns whether `start` sends a different request after an error
    (`Fallback.applies`): then that is sent at once.
    """

    def __init__(
        self,
        start: Callable[[], "Future[T]"],
        attempts: "Attempts",
        try_s: float,
        again: Callable[[S3Error], bool] | None = None,
    ) -> None:
        self._start = start
        self._again = again
        self._try_s = try_s
        self._tries = attempts  # started earlier: two calls at once share one deadline
        self._future = start()
        self._retried = False

    def answer(self, found: Callable[[], T | None] | None = None) -> T:
        """Wait for the answer. Raises the last S3Error once retries end, or Interrupted.

        `found` is for writes: it is called after a failure if the write may have succeeded all the
        same, and returns the result if it has (`lost_answers`).
        """
        attempts = self._tries
        while True:
            try:
                return self._future.result(min(self._try_s, max(attempts.left_s(), 0.0)))
            except TimeoutError:
                self._future.cancel()
                error: S3Error = Stalled(f"no answer within {self._try_s:.0f} s")
            except S3Error as failure:
                error = failure
            if self._again is None or not self._again(error):
                if not attempts.again(error):
                    break
                self._retried = True
            self._future = self._start()
        result = None
        if found is not None and may_have_succeeded(error, retried=self._retried):
            result = found()
        if result is None:
            raise attempts.last(error)
        log.debug("an earlier attempt had succeeded", error=str(error))
        return result


class Attempts:
    """The tries of one request: their number and the deadline.

    `total_s` and `max_tries` default to the policy's.
    """

    def __init__(
        self,
        retry_policy: RetryPolicy,
        *,
        total_s: float | None = None,
        max_tries: int | None = None,
    ) -> None:
        self._retry_policy = retry_policy
        self._attempt = 0
        self.answer: S3Error | None = None  # the last failure that allowed another try
        self._max_tries = max_tries or retry_policy.max_tries
        self.begun_s = time.monotonic()
        self.until_s = self.begun_s + (retry_policy.total_s if total_s is None else total_s)

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.until_s - time.monotonic()

    def pause_s(self) -> float | None:
        """Count a failed try. Return the seconds until the next, or None if time is up."""
        self._attempt += 1
        wait_s = pause_s(self._attempt, random.random())
        if self._attempt == self._max_tries or wait_s >= self.left_s():
            return None
        self._retry_policy.counters.add("retries")
        return wait_s

    def last(self, error: S3Error) -> S3Error:
        """Return the error to report after the last try, which ended with `error`.

        If that try got no answer in what was left of the time, the answer before says more.
        """
        if isinstance(error, Stalled) and self.answer is not None and self.left_s() <= 0:
            return self.answer
        return error

    def again(self, error: S3Error) -> bool:
        """Pause before the next try. Return False if `error` allows none, or time is up.

        Raises Interrupted when the mount goes away.
        """
        if not error.retryable:
            return False
        wait_s = self.pause_s()
        if wait_s is None or self._attempt >= (error.max_tries or math.inf):
            return False
        if self._retry_policy.stopping.wait(wait_s):
            raise Interrupted("the mount is ending")
        self.answer = error
        return True


class Allowance:
    """One time limit for consecutive waits on an open file that yield no data. Thread-safe.

    Once it is used up, each wait gets one try, until a wait yields data. So a program that opens
    and reads a file, or the kernel when it reads a page again after an error, does not wait for the
    whole total again.
    """

    def __init__(self, retry_policy: RetryPolicy) -> None:
        # dependencies
        self._retry_policy = retry_policy
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._waited_s = 0.0
        self._used_up = False

    def begin(self) -> Attempts:
        """Start a wait with the time that is left."""
        if not (self._waited_s or self._used_up):  # the usual case, without the lock
            return Attempts(self._retry_policy)
        with self._lock:
            left_s = self._retry_policy.total_s - self._waited_s
            if self._used_up or left_s <= 0:
                return Attempts(self._retry_policy, total_s=self._retry_policy.once_s, max_tries=1)
            return Attempts(self._retry_policy, total_s=left_s)

    def succeeded(self) -> None:
        """Record that a wait yielded data: the next waits get the whole total."""
        if not (self._waited_s or self._used_up):  # the usual case, without the lock
            return
        with self._lock:
            self._waited_s = 0.0
            self._used_up = False

    def failed(self, attempts: Attempts, *, used_up: bool) -> None:
        """Record a wait without data; `used_up` means that its caller gave up."""
        with self._lock:
            self._waited_s += time.monotonic() - attempts.begun_s
            self._used_up = self._used_up or used_up
