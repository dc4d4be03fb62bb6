"""One action on many items: on all, or on no more after the first failure."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.transfer.parallel import Result, for_each
from tests.soak import examples


def run(
    do: object, items: object, *, workers: int = 4, stopping: threading.Event | None = None
) -> Result[int]:
    return for_each(
        do,  # type: ignore[arg-type]
        items,  # type: ignore[arg-type]
        workers=workers,
        stopping=stopping or threading.Event(),
        progress=lambda done: None,
    )


@settings(deadline=None, max_examples=examples(25))
@given(st.integers(0, 60), st.integers(1, 8), st.sets(st.integers(0, 59)))
def test_each_started_item_is_done_or_failed(count: int, workers: int, bad: set[int]) -> None:
    """Each item that was started is done or failed, once; without failures all are done."""
    begun: list[int] = []

    def do(item: int) -> None:
        begun.append(item)
        if item in bad:
            raise ValueError(item)

    result = run(do, range(count), workers=workers)
    assert sorted(begun) == list(range(len(begun)))
    failed = {item for item, _ in result.failed}
    assert failed == bad & set(begun)
    assert result.done == len(begun) - len(failed)
    assert failed or len(begun) == count
    assert not result.stopped


def test_nothing_is_begun_after_a_failure() -> None:
    """The item after the failed one is not started."""
    begun = []

    def do(item: int) -> None:
        begun.append(item)
        assert item != 3, "the third"

    result = run(do, range(100), workers=1)
    assert begun == [0, 1, 2, 3]
    assert [(item, str(error).partition("\n")[0]) for item, error in result.failed] == [
        (3, "the third")
    ]


def test_no_next_item() -> None:
    """An error of the iterator is a failure as well, and items in progress are waited for."""
    done: list[int] = []

    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("no more")

    result = run(done.append, items())
    assert sorted(done) == [0, 1, 2]
    assert result.done == 3
    assert [(item, str(error)) for item, error in result.failed] == [(None, "no more")]


def test_so_many_at_a_time() -> None:
    """At most as many items as workers are in progress."""
    lock = threading.Lock()
    now, most = 0, 0

    def do(_: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        with lock:
            now -= 1

    run(do, range(200), workers=3)
    assert most <= 3


def test_the_end() -> None:
    """After the end of the mount no more items start."""
    stopping = threading.Event()

    def do(item: int) -> None:
        if item == 5:
            stopping.set()

    result = run(do, range(100), workers=1, stopping=stopping)
    assert (result.done, result.stopped) == (6, True)


def test_the_worst() -> None:
    """Errors that are no ordinary exceptions pass through."""

    def do(_: int) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        run(do, range(3))
