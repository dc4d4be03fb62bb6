"""The memory of bodies: size classes, reuse, limits, references."""

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.native import _blocks

KIB = 1 << 10
MIB = 1 << 20
#: Larger blocks are mapped, and smaller ones come from malloc.
MAPPED = 64 * KIB + 1
USUAL_LIMIT = 64 * MIB


@pytest.fixture(autouse=True)
def _empty_lists() -> Iterator[None]:
    """Start with empty free lists, and restore the usual limit."""
    _blocks.give_back()
    yield
    _blocks.keep_at_most(USUAL_LIMIT)
    _blocks.give_back()


sizes = st.integers(1, 256 * MIB)


def capacity_for(probe: Any, size: int) -> int:
    block = probe.block(size)
    capacity: int = probe.capacity(block)
    probe.block_release(block)
    return capacity


@given(sizes)
def test_waste(probe: Any, size: int) -> None:
    """A block holds what was asked for, and at most a quarter more."""
    assert size <= capacity_for(probe, size) <= size + size // 4


@given(sizes, sizes)
def test_classes_grow(probe: Any, one: int, other: int) -> None:
    """A larger size never gets a smaller block."""
    small, large = sorted((one, other))
    assert capacity_for(probe, small) <= capacity_for(probe, large)


def test_class_edges(probe: Any) -> None:
    """Exactly the size of a class gets this class; one byte more gets the next."""
    for quarter in (1 << bits for bits in range(15, 27)):
        for size in (quarters * quarter for quarters in (4, 5, 6, 7)):
            assert capacity_for(probe, size) == size
            assert capacity_for(probe, size + 1) == size + quarter


@pytest.mark.parametrize("size", [(1 << 32) + 1, 1 << 40, 1 << 62, (1 << 63) + 1, (1 << 64) - 1])
def test_too_large(probe: Any, size: int) -> None:
    """A size that no class holds gets no block."""
    assert probe.block(size) == 0


def test_reuse(probe: Any) -> None:
    """A released block is the next one of its class, and only of its class."""
    first = probe.block(MAPPED)
    probe.block_release(first)
    larger = probe.block(2 * MAPPED)
    again = probe.block(MAPPED + 5)
    assert larger != first
    assert again == first
    probe.block_release(larger)
    probe.block_release(again)


def test_the_accounts(probe: Any) -> None:
    """Blocks count as in use or as kept; those from malloc do not count."""
    (used, kept), small = _blocks.held_bytes(), probe.block(64 * KIB)
    assert kept == 0
    assert _blocks.held_bytes() == (used, 0)
    large = probe.block(MIB)
    assert _blocks.held_bytes() == (used + MIB, 0)
    probe.block_release(large)
    assert _blocks.held_bytes() == (used, MIB)
    assert _blocks.give_back() == MIB
    assert _blocks.held_bytes() == (used, 0)
    probe.block_release(small)


def test_limit(probe: Any) -> None:
    """Released blocks are kept up to the limit; the others go back to the system."""
    blocks = [probe.block(MIB) for _ in range(5)]
    _blocks.keep_at_most(3 * MIB)
    for block in blocks:
        probe.block_release(block)
    assert _blocks.held_bytes()[1] == 3 * MIB


def test_references(probe: Any) -> None:
    """The last release returns the block, and a view owns a reference."""
    used = _blocks.held_bytes()[0]
    data = os.urandom(MAPPED)
    block = probe.filled(data)
    probe.block_hold(block)
    view = memoryview(probe.block_view(block, len(data)))
    assert probe.block_refs(block) == 3
    probe.block_release(block)
    probe.block_release(block)
    assert _blocks.held_bytes()[0] > used
    part = view[100:]
    del view
    assert bytes(part) == data[100:]
    with pytest.raises(TypeError):
        part[0] = 0
    del part
    assert _blocks.held_bytes()[0] == used


def test_views_are_made_by_the_plane_only() -> None:
    """A program cannot make a view of no block."""
    with pytest.raises(TypeError):
        _blocks.BlockView()


@pytest.mark.slow
def test_threads(probe: Any) -> None:
    """Threads that take and release blocks of few classes get each block for themselves."""
    stopping = threading.Event()
    wrong: list[str] = []

    def work(number: int) -> None:
        turn = 0
        while not stopping.is_set():
            turn += 1
            mark = bytes([number]) * (MAPPED + (turn % 3) * 40 * KIB)
            block = probe.filled(mark)
            if bytes(probe.block_view(block, len(mark))) != mark:
                wrong.append(f"{number} in turn {turn}")
            probe.block_release(block)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        _blocks.give_back()
        _blocks.held_bytes()
        stopping.wait(0.005)
    stopping.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_garbage_during_the_count() -> None:
    """The collector may run while the bytes are counted, and release blocks."""
    code = textwrap.dedent(
        """
        import gc
        from mountpoint.native import _blocks
        from tests.unit.native.building import probe
        probe = probe()
        gc.disable()
        # Pairs are taken from the interpreter's own free list: without one it allocates.
        pairs = [(number, None) for number in range(3000)]
        for _ in range(10):
            block = probe.block(1 << 20)
            cycle = [probe.block_view(block, 5)]
            cycle.append(cycle)
            probe.block_release(block)
        del cycle
        gc.set_threshold(1)
        gc.enable()
        print(_blocks.held_bytes())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=30, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
