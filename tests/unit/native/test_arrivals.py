"""Arrivals: every order of what may happen to them, and threads that wait."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.soak import examples
from tests.unit.native import building

PENDING, READY, FAILED = range(3)
#: Protection against a hang, not a measure of speed.
SAFE_S = 30.0


@contextmanager
def arrivals(probe: Any, count: int) -> Iterator[list[int]]:
    """Make arrivals; at the end nothing else may refer to them."""
    made = [probe.arrival() for _ in range(count)]
    yield made
    for each in reversed(made):  # a second request refers to its first
        assert probe.arrival_refs(each) == 1
        probe.arrival_release(each)


def test_first_end_counts(probe: Any) -> None:
    """The first end counts; a second one changes nothing and takes no block."""
    first, second = probe.filled(b"first"), probe.filled(b"second")
    with arrivals(probe, 1) as (it,):
        assert probe.arrival_state(it) == (PENDING, False, False, False)
        assert probe.arrival_end(it, READY, first)
        assert not probe.arrival_end(it, FAILED)
        assert not probe.arrival_overtake(it, second)
        assert probe.arrival_state(it) == (READY, True, False, False)
        assert probe.arrival_block(it) == first
        assert probe.block_refs(first) == 3  # ours, the arrival's, and the one just returned
        assert probe.block_refs(second) == 1
        probe.block_release(first)
    assert probe.block_refs(first) == 1
    probe.block_release(first)
    probe.block_release(second)


@pytest.mark.parametrize("state", [READY, FAILED])
def test_end_without_a_block(probe: Any, state: int) -> None:
    """An arrival whose bytes Python has, or that failed, has no block."""
    with arrivals(probe, 1) as (it,):
        assert probe.arrival_block(it) == 0
        assert probe.arrival_end(it, state)
        assert probe.arrival_block(it) == 0
        assert probe.arrival_wait(it, False, 0)


@pytest.mark.parametrize("for_headers", [False, True])
@pytest.mark.parametrize(
    ("happens", "wakes"),
    [
        ("nothing", (False, False)),
        ("describe", (False, True)),
        ("doubt", (True, True)),
        ("ready", (True, True)),
        ("fail", (True, True)),
        ("overtake", (True, True)),
    ],
)
def test_waking(probe: Any, happens: str, wakes: tuple[bool, bool], for_headers: bool) -> None:
    """Threads wake for what they wait for, whether they come before it or after it."""
    expected = wakes[for_headers]
    answers: list[bool] = []
    block = probe.filled(b"x")
    with arrivals(probe, 1) as (it,):
        waiting = threading.Thread(
            target=lambda: answers.append(
                probe.arrival_wait(it, for_headers, SAFE_S if expected else 0.05)
            )
        )
        waiting.start()
        time.sleep(0.01)
        events: dict[str, Callable[[], object]] = {
            "nothing": lambda: None,
            "describe": lambda: probe.arrival_describe(it),
            "doubt": lambda: probe.arrival_doubt(it),
            "ready": lambda: probe.arrival_end(it, READY, block),
            "fail": lambda: probe.arrival_end(it, FAILED),
            "overtake": lambda: probe.arrival_overtake(it, block),
        }
        events[happens]()
        waiting.join()
        answers.append(probe.arrival_wait(it, for_headers, 0.0))
    assert answers == [expected, expected]
    probe.block_release(block)


def test_negative_and_endless_times(probe: Any) -> None:
    """A negative time is none, and an endless one does not overflow."""
    with arrivals(probe, 1) as (it,):
        assert not probe.arrival_wait(it, False, -5.0)
        threading.Timer(0.02, lambda: probe.arrival_end(it, FAILED)).start()
        assert probe.arrival_wait(it, False, float("inf"))


def test_second_request_is_released_first(probe: Any) -> None:
    """A second request keeps its first one until it has ended, or is gone."""
    first, second = probe.arrival(), probe.arrival()
    probe.arrival_serve(second, first)
    assert probe.arrival_refs(first) == 2
    probe.arrival_release(second)
    assert probe.arrival_refs(first) == 1
    probe.arrival_release(first)


class Pairs(RuleBasedStateMachine):
    """A first and a second request for the same bytes, in any order of events, with a model."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = building.probe()
        self.ids = [self.probe.arrival(), self.probe.arrival()]
        self.blocks = [self.probe.filled(b"first"), self.probe.filled(b"second")]
        self.states: list[tuple[int, bool, bool, bool]] = [(PENDING, False, False, False)] * 2
        self.has: list[int] = [0, 0]
        self.serves = False

    @initialize(serves=st.booleans())
    def begin(self, serves: bool) -> None:
        if serves:
            self.probe.arrival_serve(self.ids[1], self.ids[0])
        self.serves = serves

    @rule(which=st.sampled_from([0, 1]))
    def describe(self, which: int) -> None:
        self.probe.arrival_describe(self.ids[which])
        state, _, in_doubt, overtaken = self.states[which]
        self.states[which] = (state, True, in_doubt, overtaken)

    @rule(which=st.sampled_from([0, 1]))
    def doubt(self, which: int) -> None:
        self.probe.arrival_doubt(self.ids[which])
        state, described, _, overtaken = self.states[which]
        self.states[which] = (state, described, True, overtaken)

    @rule(which=st.sampled_from([0, 1]), state=st.sampled_from([READY, FAILED]))
    def end(self, which: int, state: int) -> None:
        block = self.blocks[which] if state == READY else 0
        ended = self.probe.arrival_end(self.ids[which], state, block)
        assert ended == (self.states[which][0] == PENDING)
        if ended:
            self._ended(which, state, block)
            if which == 1 and self.serves and state == READY and self.states[0][0] == PENDING:
                self._ended(0, READY, block, overtaken=True)
        self.serves = self.serves and which == 0

    @rule()
    def wait(self) -> None:
        for each, (state, described, in_doubt, _) in zip(self.ids, self.states, strict=True):
            over = state != PENDING or in_doubt
            assert self.probe.arrival_wait(each, False, 0.0) == over
            assert self.probe.arrival_wait(each, True, 0.0) == (over or described)

    def _ended(self, which: int, state: int, block: int, *, overtaken: bool = False) -> None:
        self.states[which] = (state, True, self.states[which][2], overtaken)
        self.has[which] = block

    def teardown(self) -> None:
        for each, state, has in zip(self.ids, self.states, self.has, strict=True):
            assert self.probe.arrival_state(each) == state
            assert self.probe.arrival_block(each) == has
            if has:
                self.probe.block_release(has)
        for block in self.blocks:
            assert self.probe.block_refs(block) == 1 + self.has.count(block)
        assert self.probe.arrival_refs(self.ids[0]) == 1 + self.serves
        for each in reversed(self.ids):
            self.probe.arrival_release(each)
        for block in self.blocks:
            assert self.probe.block_refs(block) == 1
            self.probe.block_release(block)


TestPairs = Pairs.TestCase
TestPairs.settings = settings(max_examples=examples(50), stateful_step_count=12, deadline=None)
