"""What reads look like: which read belongs to a run, strides, and whether a reader jumps."""

import pytest

from mountpoint.read.patterns import (
    COUNTED_TURNS,
    JITTER_READS,
    LAST_LENGTHS,
    MAX_PIECES,
    PAGE_BYTES,
    Jumps,
    Run,
    Stride,
)

SIZE = 1 << 30
READ_BYTES = 128 * 1024


def run_of(start: int, stop: int, *, ahead: int = 0) -> Run:
    """Return a run that has read [start, stop) in reads of one size."""
    return Run(start, stop, stop + ahead, ahead, used=0, largest=READ_BYTES)


def test_a_first_read_is_continued_at_its_end() -> None:
    """A second read continues it at its end, or within its last page."""
    run = run_of(0, READ_BYTES)
    held = [READ_BYTES - PAGE_BYTES, READ_BYTES]
    assert all(run.holds(begin, 0) for begin in held)
    assert not any(run.holds(begin, 0) for begin in (0, READ_BYTES + 1))
    assert run.holds(READ_BYTES + 7, 7)


def test_a_run_holds_reads_near_it() -> None:
    """Reads in any order around the cursor, and all of what was planned."""
    stop, ahead = 100 * READ_BYTES, 50 * READ_BYTES
    run = run_of(0, stop, ahead=ahead)
    assert run.slack == JITTER_READS * READ_BYTES
    for begin, held in (
        (stop - run.slack, True),
        (stop - run.slack - 1, False),
        (stop + ahead, True),
        (stop + ahead + 1, False),
    ):
        assert run.holds(begin, 0) == held
    assert not run.leaps(stop + run.slack, 0)
    assert run.leaps(stop + run.slack + 1, 0)
    assert not run.leaps(stop + run.slack + 1, run.slack + 1)


def test_a_stride() -> None:
    """From the third read on each is expected; soon many pieces are worth fetching."""
    stride = Stride()
    offsets = range(0, 10 * MAX_PIECES * READ_BYTES, 10 * READ_BYTES)
    assert [stride.hit(offset, READ_BYTES) for offset in offsets] == [False] * 2 + [True] * (
        len(offsets) - 2
    )
    assert stride.earned() == MAX_PIECES
    stride.ahead = 3
    assert stride.reach() == (offsets[-1], offsets[-1] + 31 * READ_BYTES)


def test_pieces_in_vain() -> None:
    """Once pieces were left unread, no more than a quarter of those read are worth fetching."""
    stride = Stride()
    for offset in range(4):
        stride.hit(offset * MAX_PIECES * READ_BYTES, READ_BYTES)
    stride.ahead = 2
    assert not stride.hit(0, READ_BYTES)
    assert stride.earned() == 0
    for offset in range(1, 30):
        stride.hit(offset * MAX_PIECES * READ_BYTES, READ_BYTES)
    assert stride.earned() == stride.hits // 4


@pytest.mark.parametrize("distance", [READ_BYTES, READ_BYTES + 2 * PAGE_BYTES - 1])
def test_pieces_that_touch_are_no_stride(distance: int) -> None:
    """No page belongs to two pieces."""
    stride = Stride()
    assert not any(stride.hit(offset * distance, READ_BYTES) for offset in range(9))


def test_jumps() -> None:
    """Two jumps are a header and a footer; more are usual unless the reader returns as often."""
    jumps = Jumps(SIZE)
    found = []
    for _ in range(3):
        jumps.left(run_of(0, READ_BYTES))
        found.append(jumps.usual)
    assert found == [False, True, True]
    for _ in range(2):
        jumps.returned()
    assert not jumps.usual


def test_the_usual_length() -> None:
    """It is what all of the last runs reached, those that the end of the object cut off aside."""
    jumps = Jumps(SIZE)
    assert jumps.usual_length == 0
    jumps.left(run_of(0, 1000))
    for _ in range(LAST_LENGTHS - 1):
        jumps.left(run_of(0, 3000))
    jumps.left(run_of(SIZE - 10, SIZE))
    assert jumps.usual_length == 1000
    jumps.left(run_of(0, 2000))
    assert jumps.usual_length == 2000


def test_early_turns_count_less() -> None:
    """A reader that no longer returns jumps about, however often it has returned before."""
    jumps = Jumps(SIZE)
    for _ in range(10 * COUNTED_TURNS):
        jumps.returned()
    for _ in range(2 * COUNTED_TURNS):
        jumps.left(run_of(0, READ_BYTES))
    assert jumps.usual
