"""Meters that other threads use without the interpreter."""

import threading

from mountpoint.metrics._histogram import Timer
from tests.unit.native.building import probe


def test_under_way_while_others_count() -> None:
    """The number of activities under way is never below 0, whatever threads do meanwhile."""
    timer = Timer()
    run = probe().run_timer
    threads = [threading.Thread(target=run, args=(timer, 3_000_000)) for _ in range(2)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, timer.under_way, timer.numbers()["under_way"])
    assert most <= 6_000_000
    assert timer.under_way == 0
    assert timer.over == 3_000_000
