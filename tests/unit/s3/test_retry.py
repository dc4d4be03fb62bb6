"""Deadlines and retries: pauses, tries, totals, and the end of the mount."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.errors import (
    AccessDenied,
    Interrupted,
    NotFound,
    NotOffered,
    S3Error,
    ServerFault,
    Stalled,
    Throttled,
    Unusable,
)
from mountpoint.s3 import retry
from mountpoint.s3.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, Allowance, RetryPolicy, pause_s


class Clock:
    """Time that passes only in waits. It also serves as the event of the end."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waits: list[float] = []
        self.ends_at_s = math.inf

    def monotonic(self) -> float:
        return self.now_s

    def wait(self, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        self.now_s = min(self.now_s + timeout_s, max(self.now_s, self.ends_at_s))
        return self.now_s >= self.ends_at_s


class Asked:
    """Requests that are answered when they are sent: an exception, a value, or never (None)."""

    def __init__(self, clock: Clock, *answers: object, took_s: float = 0.0) -> None:
        self.futures: list[Future[object]] = []
        self.timeouts: list[float] = []
        self._answers = list(answers)
        self._clock = clock
        self._took_s = took_s

    def __call__(self) -> "Future[object]":
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        clock, took_s, timeouts = self._clock, self._took_s, self.timeouts

        class Answer(Future[object]):
            def result(self, timeout: float | None = None) -> object:
                assert timeout is not None, "every wait has a bound"
                timeouts.append(timeout)
                clock.now_s += timeout if answer is None else took_s
                return super().result(0)

        future = Answer()
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        elif answer is not None:
            future.set_result(answer)
        self.futures.append(future)
        return future


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    monkeypatch.setattr(retry, "random", SimpleNamespace(random=lambda: 0.0))
    return clock


def retry_policy(
    clock: Clock, *, max_tries: int | None = None, total_s: float = 60.0
) -> RetryPolicy:
    return RetryPolicy(try_s=10.0, total_s=total_s, stopping=clock, max_tries=max_tries)  # type: ignore[arg-type]


def failing(call: Callable[[], object]) -> Exception:
    """Return the error of a call."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # any; the test looks at it
        call()
    return caught.value


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses(attempt: int, jitter: float) -> None:
    """The first retry is immediate; later pauses double up to a bound, at least half of each."""
    pause = pause_s(attempt, jitter)
    if attempt < 2:
        assert pause == 0.0
    else:
        longest = min(FIRST_PAUSE_S * 2.0 ** min(attempt - 2, 60), LONGEST_PAUSE_S)
        assert longest / 2 <= pause <= longest
        assert pause_s(attempt, 0.0) <= pause


def test_an_answer_is_one_request(clock: Clock) -> None:
    """A success is one request, sent by the call and not by the wait."""
    asked = Asked(clock, "answer")
    question = retry_policy(clock).ask(asked)
    assert len(asked.futures) == 1
    assert question.answer() == "answer"
    assert len(asked.futures) == 1
    assert clock.waits == []


def test_the_total_begins_with_the_question(clock: Clock) -> None:
    """The total includes the time before the wait for this answer (LIST, then HEAD)."""
    question = retry_policy(clock).ask(Asked(clock, None))
    began_s, clock.now_s = clock.now_s, clock.now_s + 45.0
    assert isinstance(failing(question.answer), Stalled)
    assert clock.now_s <= began_s + 60.0


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_retryable_errors_are_retried(clock: Clock, failures: int) -> None:
    """Throttling and server faults are retried, the first time immediately."""
    errors = [ServerFault("500") if index % 2 else Throttled("503") for index in range(failures)]
    asked = Asked(clock, *errors, "answer")
    assert retry_policy(clock).ask(asked).answer() == "answer"
    assert len(asked.futures) == failures + 1
    assert clock.waits == [pause_s(attempt, 0.0) for attempt in range(1, failures + 1)]
    assert clock.waits[0] == 0.0


@pytest.mark.parametrize("error", [NotFound("no"), AccessDenied("no"), S3Error("no")])
def test_refusals_are_not_retried(clock: Clock, error: S3Error) -> None:
    """Permanent errors of S3 are raised immediately."""
    asked = Asked(clock, error, "answer")
    assert failing(retry_policy(clock).ask(asked).answer) is error
    assert len(asked.futures) == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), Interrupted("end")])
def test_errors_not_of_s3_are_not_retried(clock: Clock, error: Exception) -> None:
    """A bug, or the end of the mount, is not retried."""
    asked = Asked(clock, error, "answer")
    assert failing(retry_policy(clock).ask(asked).answer) is error
    assert len(asked.futures) == 1


def test_a_silent_try_is_cancelled(clock: Clock) -> None:
    """A try without an answer is cancelled after its time, and another one is sent."""
    asked = Asked(clock, None, "answer")
    assert retry_policy(clock).ask(asked).answer() == "answer"
    assert asked.timeouts == [10.0, 10.0]
    assert [future.cancelled() for future in asked.futures] == [True, False]


def test_silence_ends_at_the_total(clock: Clock) -> None:
    """Without any answer the wait ends with Stalled, exactly at its total."""
    asked = Asked(clock, None)
    error = failing(retry_policy(clock, total_s=35.0).ask(asked).answer)
    assert isinstance(error, Stalled)
    assert clock.now_s == pytest.approx(1035.0)
    assert len(asked.futures) == 4
    assert all(future.cancelled() for future in asked.futures)


def test_the_answer_before_a_try_that_is_cut_short(clock: Clock) -> None:
    """If the total ends during a try, the error is what S3 has answered before."""
    asked = Asked(clock, Throttled("slow down"), None)
    assert isinstance(failing(retry_policy(clock, total_s=5.0).ask(asked).answer), Throttled)
    assert asked.timeouts == [5.0, 5.0]


def test_large_requests_get_more_time(clock: Clock) -> None:
    """A request that is known to take longer gets more time for each try, and in total."""
    asked = Asked(clock, None)
    question = retry_policy(clock).ask(asked, more_s=100.0)
    began_s = clock.now_s
    assert isinstance(failing(question.answer), Stalled)
    assert asked.timeouts[0] == 110.0
    assert 150.0 <= clock.now_s - began_s <= 160.0


@pytest.mark.parametrize(
    ("answers", "looks"),
    [
        ([AccessDenied("no")], 0),
        ([ServerFault("500"), AccessDenied("no")], 1),
        ([None] * 10, 1),  # tries run out
    ],
)
@pytest.mark.parametrize("result", ["done", None])
def test_a_write_that_may_have_succeeded(
    clock: Clock, answers: list[S3Error | None], looks: int, result: str | None
) -> None:
    """After a second try the caller looks for its result; without one the error is raised."""
    looked: list[None] = []

    def found() -> str | None:
        looked.append(None)
        return result

    call = retry_policy(clock).ask(Asked(clock, *answers))
    if looks and result:
        assert call.answer(found) == "done"
    else:
        assert isinstance(failing(lambda: call.answer(found)), AccessDenied | Stalled)
    assert len(looked) == looks


def test_another_request_in_place_of_a_refused_one(clock: Clock) -> None:
    """The replacement is sent immediately and counts as no retry: one try is enough for it."""
    asked = Asked(clock, NotOffered("501"), "answer")
    refused: list[S3Error] = []

    def again(error: S3Error) -> bool:
        refused.append(error)
        return True

    assert retry_policy(clock, max_tries=1).ask(asked, again=again).answer() == "answer"
    assert [type(each) for each in refused] == [NotOffered]
    assert clock.waits == []


def test_parts_of_one_wait_share_its_end(clock: Clock) -> None:
    """A part of a larger wait ends with it, whenever it started."""
    whole = retry_policy(clock, total_s=35.0).begin()
    clock.now_s += 20.0
    error = failing(retry_policy(clock, total_s=35.0).ask(Asked(clock, None), whole).answer)
    assert isinstance(error, Stalled)
    assert clock.now_s == pytest.approx(1035.0)


@pytest.mark.parametrize(("total_s", "once_s"), [(60.0, 10.0), (8.0, 4.0)])
def test_requests_with_an_alternative(clock: Clock, total_s: float, once_s: float) -> None:
    """A request with an alternative gets one try, and half of the total at most."""
    assert retry_policy(clock, total_s=total_s).once_s == once_s


@settings(deadline=None)
@given(st.floats(0.1, 200.0), st.floats(0.0, 15.0), st.booleans())
def test_the_total_is_never_exceeded(total_s: float, took_s: float, silent: bool) -> None:
    """With tries of any duration, no wait exceeds the total and one last answer."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(retry, "time", clock)
        asked = Asked(clock, None if silent else ServerFault("500"), took_s=took_s)
        error = failing(retry_policy(clock, total_s=total_s).ask(asked).answer)
        assert isinstance(error, Stalled if silent else ServerFault)
        assert clock.now_s - 1000.0 <= total_s + (0.0 if silent else took_s) + 1e-6
        assert all(timeout >= 0.0 for timeout in asked.timeouts)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_max_tries(clock: Clock, most: int) -> None:
    """The number of tries is bounded, whatever time is left."""
    asked = Asked(clock, ServerFault("500"))
    assert isinstance(failing(retry_policy(clock, max_tries=most).ask(asked).answer), ServerFault)
    assert len(asked.futures) == most


def test_permanent_answers_are_requested_three_times(clock: Clock) -> None:
    """A permanent answer of a store is requested three times, not for a minute."""
    asked = Asked(clock, Unusable("no ETag"))
    assert isinstance(failing(retry_policy(clock).ask(asked).answer), Unusable)
    assert len(asked.futures) == 3
    assert clock.now_s < 1001.0
    asked = Asked(clock, Unusable("no ETag"), Unusable("no ETag"), "answer")
    assert retry_policy(clock).ask(asked).answer() == "answer"
    # After other failures there is no retry at all.
    asked = Asked(clock, *[ServerFault("500")] * 4, Unusable("no ETag"))
    assert isinstance(failing(retry_policy(clock).ask(asked).answer), Unusable)
    assert len(asked.futures) == 5


def test_the_end_of_the_mount_ends_a_pause(clock: Clock) -> None:
    """If the mount ends during a pause, Interrupted is raised and nothing sent."""
    clock.ends_at_s = 1000.12
    asked = Asked(clock, ServerFault("500"))
    assert isinstance(failing(retry_policy(clock).ask(asked).answer), Interrupted)
    assert clock.now_s == pytest.approx(1000.12)
    assert len(asked.futures) == 3


def test_no_retries_after_the_end(clock: Clock) -> None:
    """Once the mount is ending, the first failure ends the wait."""
    clock.ends_at_s = 0.0
    asked = Asked(clock, ServerFault("500"))
    assert isinstance(failing(retry_policy(clock).ask(asked).answer), Interrupted)
    assert len(asked.futures) == 1


def test_a_real_event_wakes_a_real_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting the event wakes a pausing thread."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 1000.0)
    monkeypatch.setattr(retry, "LONGEST_PAUSE_S", 1000.0)
    stopping = threading.Event()
    attempts = RetryPolicy(try_s=1.0, total_s=10_000.0, stopping=stopping).begin()
    assert attempts.again(ServerFault())
    results: list[Exception] = []

    def pause() -> None:
        try:
            attempts.again(ServerFault())
        except Interrupted as error:
            results.append(error)

    thread = threading.Thread(target=pause)
    thread.start()
    stopping.set()
    thread.join(60.0)
    assert not thread.is_alive()
    assert len(results) == 1


# --- Waits in a row ---


def test_waits_that_bring_nothing_share_one_total(clock: Clock) -> None:
    """An open that got only headers, and the next read, share the total."""
    allowance = Allowance(retry_policy(clock, total_s=60.0))
    opening = allowance.begin()
    clock.now_s += 25.0
    allowance.failed(opening, used_up=False)
    clock.now_s += 1000.0  # no wait meanwhile
    assert allowance.begin().left_s() == pytest.approx(35.0)


@pytest.mark.parametrize("waited_s", [57.0, 61.0])
def test_after_it_is_used_up_each_wait_is_one_try(clock: Clock, waited_s: float) -> None:
    """Then each wait gets one try, until one yields data; that restores the whole total."""
    allowance = Allowance(retry_policy(clock, total_s=60.0))
    attempts = allowance.begin()
    clock.now_s += waited_s
    allowance.failed(attempts, used_up=True)
    for _ in range(3):
        attempts = allowance.begin()
        assert attempts.left_s() == pytest.approx(10.0)
        assert not attempts.again(ServerFault())
        allowance.failed(attempts, used_up=True)
    allowance.succeeded()
    attempts = allowance.begin()
    assert attempts.left_s() == pytest.approx(60.0)
    assert attempts.again(ServerFault())
