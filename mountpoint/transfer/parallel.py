"""Run one action on many items in parallel, until one fails.

The threads end with the call. No item is started after the first failure, or when the mount goes
away. Items in progress are waited for, so the result is known for each of them.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

#: Seconds between calls of `progress` while no item ends.
TICK_S = 1.0


@dataclass(slots=True)
class Result(Generic[T]):
    """The number of items done, and the failed ones; None for an error of the iterator itself.

    `stopped`: some items were not started, because the mount goes away.
    """

    done: int = 0
    stopped: bool = False
    failed: list[tuple[T | None, Exception]] = field(default_factory=list)


def for_each(
    do: Callable[[T], object],
    items: Iterable[T],
    *,
    workers: int,
    stopping: threading.Event,
    progress: Callable[[int], None],
) -> Result[T]:
    """Call `do` for all items, `workers` at a time; call `progress` with the number done."""
    result: Result[T] = Result()
    under_way: dict[Future[object], T] = {}

    def collect(ended: Iterable[Future[object]]) -> None:
        for future in ended:
            item = under_way.pop(future)
            error = future.exception()
            if error is None:
                result.done += 1
            elif isinstance(error, Exception):
                result.failed.append((item, error))
            else:
                raise error
        progress(result.done)

    def wait_for(fewer: int) -> None:
        """Wait until fewer than this are in progress."""
        collect([future for future in under_way if future.done()])
        while len(under_way) >= fewer:
            collect(wait(under_way, TICK_S, FIRST_COMPLETED).done)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                wait_for(workers)
                result.stopped = stopping.is_set()
                if result.failed or result.stopped:
                    break
                under_way[pool.submit(do, item)] = item
        except Exception as error:
            result.failed.append((None, error))
        wait_for(1)
    return result
