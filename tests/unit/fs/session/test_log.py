"""The session's log: what was noted is there for another process, whenever the first one dies."""

import contextlib
import itertools
import json
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mountpoint.fs.session import log as module
from mountpoint.fs.session.log import (
    SessionLog,
    bytes_of,
    fields_of,
    json_of,
    new_log,
    text_of,
    version_of,
)
from mountpoint.s3.client import ObjectInfo
from tests.soak import SEED, examples


class Kept:
    """A log, and the memfd that its keeper would hold."""

    def __init__(self) -> None:
        self.file = new_log()
        self.published = 0
        self._read: list[SessionLog] = []
        self.log = SessionLog(os.dup(self.file), self._publish)

    def _publish(self, file: int) -> None:
        os.close(self.file)
        self.file = os.dup(file)
        self.published += 1

    def text(self) -> bytes:
        """Return what was written."""
        return os.pread(self.file, os.fstat(self.file).st_size, 0).rstrip(b"\0")

    def read(self) -> SessionLog:
        """Return the log as another process finds it. If its memfd is full, it closes that."""
        log = SessionLog(os.dup(self.file), lambda file: None)
        self._read.append(log)
        return log

    def close(self) -> None:
        os.close(self.file)
        for log in (self.log, *self._read):
            os.close(log.file)


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


def test_a_cut_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process dies within a note, the notes before are there, and new ones can follow.

    The copy of a line may have any order: what is not copied is zero.
    """
    monkeypatch.setattr(module, "MIN_BYTES", 1000)
    with contextlib.closing(Kept()) as kept:
        kept.log.note("handle", 1, {"inode": 5})
        before = len(kept.text())
        kept.log.note("handle", 2, {"inode": 6})
        line = kept.text()[before:]
        for start, end in itertools.combinations(range(len(line)), 2):
            zeros = bytes(end - start)
            os.pwrite(kept.file, line[:start] + zeros + line[end:], before)
            assert kept.read().records("handle") == {1: {"inode": 5}}
        log = kept.read()
        log.note("handle", 3, {"inode": 7})
        assert kept.read().records("handle") == {1: {"inode": 5}, 3: {"inode": 7}}


def test_a_short_log(kept: Kept) -> None:
    """A log that ends with its text, as earlier versions made it, goes on."""
    kept.log.note("handle", 1, {"inode": 5})
    with contextlib.closing(Kept()) as short:
        os.truncate(short.file, 0)
        os.write(short.file, kept.text())
        short.read().note("handle", 2, {"inode": 6})
        assert short.read().records("handle") == {1: {"inode": 5}, 2: {"inode": 6}}


@given(st.text(), st.binary(), st.none() | st.dictionaries(st.text(), st.text()), st.booleans())
def test_versions_in_json(
    text: str, key: bytes, metadata: dict[str, str] | None, restored: bool
) -> None:
    """The text of a version that was written by hand has the same fields."""
    version = ObjectInfo(key, 5, -7, text, text, restored, metadata)
    assert json.loads(json_of(version)) == fields_of(version)
    assert version_of(json.loads(json_of(version))) == version


def test_it_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outdated lines are left out when it is full; it grows with what counts."""
    drawn = random.Random(SEED)
    monkeypatch.setattr(module, "MIN_BYTES", 2000)
    with contextlib.closing(Kept()) as small:
        expected: dict[int, dict[str, int]] = {}
        for step in range(3000):
            number = drawn.randrange(20)
            if drawn.random() < 0.4:
                small.log.drop("handle", number)
                expected.pop(number, None)
            else:
                small.log.note("handle", number, {"inode": step})
                expected[number] = {"inode": step}
            assert os.fstat(small.file).st_size == 2000
            if step % 100 == 0:
                assert small.read().records("handle") == expected
        assert small.published > 10
        for number in range(100):
            small.log.note("handle", number, {"inode": number})
            expected[number] = {"inode": number}
        assert small.read().records("handle") == expected
        assert os.fstat(small.file).st_size < 3 * len(small.text())
