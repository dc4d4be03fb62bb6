"""The session's log: what was noted is there for another process, whenever the first one dies."""

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.fs.session import log as module
from mountpoint.fs.session.log import SessionLog, bytes_of, new_log, text_of
from tests.soak import SEED, examples


class Kept:
    """A log, and the memfd that its keeper would hold."""

    def __init__(self) -> None:
        self.file = new_log()
        self.published = 0
        self.log = SessionLog(os.dup(self.file), self._publish)

    def _publish(self, file: int) -> None:
        os.close(self.file)
        self.file = os.dup(file)
        self.published += 1

    def read(self) -> SessionLog:
        """Return the log as another process finds it."""
        return SessionLog(self.file, lambda file: None)

    def close(self) -> None:
        os.close(self.file)
        os.close(self.log.file)


@pytest.fixture
def kept() -> Iterator[Kept]:
    it = Kept()
    yield it
    it.close()


def test_the_last_note_counts(kept: Kept) -> None:
    """Records are found by kind and number, or name, until they are dropped."""
    kept.log.note("handle", 1, {"inode": 5})
    kept.log.note("handle", 2, {"inode": 6})
    kept.log.note("listing", 1, {"inode": 7})
    kept.log.note("created", "a/b/", {})
    kept.log.note("handle", 1, {"inode": 8})
    kept.log.drop("handle", 2)
    kept.log.drop("handle", 3)
    for log in (kept.log, kept.read()):
        assert log.records("handle") == {1: {"inode": 8}}
        assert log.records("listing") == {1: {"inode": 7}}
        assert log.records("created") == {"a/b/": {}}


@given(data=st.binary(max_size=40))
@settings(max_examples=examples(50))
def test_all_bytes(data: bytes) -> None:
    """Keys are bytes; all of them come back, also line ends and quotes."""
    kept = Kept()
    try:
        kept.log.note("created", text_of(data), {"name": text_of(data)})
        ((name, fields),) = kept.read().records("created").items()
        assert bytes_of(name) == bytes_of(fields["name"]) == data
    finally:
        kept.close()


def test_a_cut_line(kept: Kept) -> None:
    """If the process dies within a note, the notes before are there, and new ones can follow."""
    kept.log.note("handle", 1, {"inode": 5})
    before = os.fstat(kept.file).st_size
    kept.log.note("handle", 2, {"inode": 6})
    for size in range(before, os.fstat(kept.file).st_size - 1):
        os.truncate(kept.file, size)
        assert kept.read().records("handle") == {1: {"inode": 5}}
    log = kept.read()
    log.note("handle", 3, {"inode": 7})
    assert kept.read().records("handle") == {1: {"inode": 5}, 3: {"inode": 7}}


def test_it_stays_small(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outdated lines are left out now and then, at most as many as there are others."""
    monkeypatch.setattr(module, "MIN_BYTES", 2000)
    drawn = random.Random(SEED)
    expected: dict[int, dict[str, int]] = {}
    for step in range(3000):
        number = drawn.randrange(20)
        if drawn.random() < 0.4:
            kept.log.drop("handle", number)
            expected.pop(number, None)
        else:
            kept.log.note("handle", number, {"inode": step})
            expected[number] = {"inode": step}
        assert os.fstat(kept.file).st_size < 2100
        if step % 100 == 0:
            assert kept.read().records("handle") == expected
    assert kept.published > 10
    assert kept.read().records("handle") == expected
