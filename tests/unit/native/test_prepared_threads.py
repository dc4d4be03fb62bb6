"""Prepared files that many threads open while others change what is prepared."""

import json
import os
import random
import sys
import threading
from typing import Any

import pytest

from mountpoint.native import _lane
from mountpoint.native._handles import NativeHandles, OpenedFile
from mountpoint.native._prepared import PreparedFiles
from tests.soak import seeds
from tests.unit.native.prepared_files import (
    DATA,
    FIELDS,
    SAFE_S,
    SIZE,
    UNTIL_S,
    mapped,
    source_of,
    text_of,
)

WORKERS, OPENS, HELD, FEW = 4, 200, 4, 6


class Crowd:
    """Threads that open, read and close files, and others that disturb them."""

    def __init__(self, probe: Any, seed: int) -> None:
        self.seed = seed
        self.sources = [source_of(probe, DATA[inode:]) for inode in range(FEW)]
        self.journal, self.file = mapped()
        self.handles = NativeHandles(self.journal)
        self.files = PreparedFiles(self.handles)
        self.stopping = threading.Event()
        # Threads append to these lists; each time that is one step of the interpreter.
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.taken: list[int] = []
        self.read: list[int] = []  # the sizes of all reads
        self.read_and_closed: list[int] = []  # of those through handles that were closed
        self.wrong: list[str] = []

    def add(self, drawn: random.Random) -> None:
        inode, generation = drawn.randrange(FEW), self.files.generation
        source = self.sources[inode]
        self.files.add(inode, generation, UNTIL_S, SIZE - inode, source, FIELDS, wakes=True)

    def use(self, drawn: random.Random) -> None:
        """Open files, read them, and close them; the last ones stay open."""
        held: dict[int, list[int]] = {}  # the sizes of their reads
        for turn in range(OPENS):
            handle = 0
            while not handle:
                inode = drawn.randrange(FEW)
                handle = self.files.open(inode, turn, 0.0)
                if not handle:
                    self.add(drawn)
            self.opened.append(handle)
            held[handle] = [self._read(handle, inode, drawn) for _ in range(drawn.randrange(4))]
            if len(held) == HELD:
                handle = drawn.choice(list(held))
                sizes = held.pop(handle)
                if self.handles.close(handle):
                    self.closed.append(handle)
                    self.read_and_closed += sizes
                else:  # it was taken, or the log is full: then Python takes it
                    self._note(self.handles.take_handle(handle))

    def _read(self, handle: int, inode: int, drawn: random.Random) -> int:
        """Read, and return how much."""
        offset, size = drawn.randrange(SIZE - FEW), drawn.randrange(1, SIZE)
        data = self.handles.read(handle, offset, size)
        if data is None:  # it was taken
            return 0
        if data != DATA[inode:][offset : offset + size]:
            self.wrong.append(f"{size} bytes at {offset} of {inode}")
        self.read.append(len(data))
        return len(data)

    def _note(self, opened: OpenedFile | None) -> None:
        """Note a handle that is Python's now."""
        if opened is not None:
            _lane.unregister(opened.handle)
            self.taken.append(opened.handle)

    def disturb(self, drawn: random.Random) -> None:
        """Forget, take, look and ask; without a look at what was opened nothing more would be."""
        while not self.stopping.is_set():
            self.add(drawn)
            self.files.take_opened()
            inode, what = drawn.randrange(FEW), drawn.randrange(5)
            if what == 0:
                self.files.forget_all()
            elif what == 1:
                for opened in self.handles.take(inode):
                    self._note(opened)
            elif what == 2 and self.opened:
                self._note(self.handles.take_handle(drawn.choice(self.opened[-10:])))
            else:
                self.handles.is_open(inode)
                self.files.wake(inode)

    def rewrite(self, drawn: random.Random) -> None:
        """Write the log anew when it is full, as the session does."""
        while not self.stopping.is_set():
            if self.journal.append(b"\n"):
                continue
            self.journal.seal()
            text = self.handles.text()
            os.ftruncate(self.file, 0)
            os.ftruncate(self.file, len(text) + drawn.randrange(1, 5000))
            os.pwrite(self.file, text, 0)
            self.journal.map(self.file, len(text))

    def wait(self, drawn: random.Random) -> None:
        """Wait for opens."""
        while not self.stopping.is_set():
            self.files.wait(SAFE_S)

    def run(self) -> None:
        """Run all threads to their ends."""
        works = [*[self.use] * WORKERS, self.disturb, self.rewrite, self.wait]
        threads = [
            threading.Thread(target=work, args=(random.Random(self.seed + number),))
            for number, work in enumerate(works)
        ]
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)
        try:
            for thread in threads:
                thread.start()
            for thread in threads[:WORKERS]:
                thread.join()
        finally:
            self.stopping.set()
            self.files.end()
            for thread in threads:
                thread.join()
            sys.setswitchinterval(before)

    def open_in_log(self) -> set[int]:
        """Return the handles that are open according to the log."""
        found: set[int] = set()
        for line in text_of(self.file).split():
            _, handle, *fields = json.loads(line)
            if fields:
                found.add(handle)
            else:
                found.discard(handle)
        return found


@pytest.mark.parametrize("seed", seeds(fixed=0, drawn=1).values(), ids=seeds(fixed=0, drawn=1))
def test_threads(probe: Any, seed: int) -> None:
    """Every handle ends once, closed or taken, or is still open; all bytes are right."""
    print(f"seed {seed}")
    before = _lane.registered()
    crowd = Crowd(probe, seed)
    crowd.run()
    assert crowd.wrong == []
    assert len(set(crowd.opened)) == WORKERS * OPENS, "two opens have got one handle"
    ended = crowd.closed + crowd.taken
    assert len(set(ended)) == len(ended), "a handle has ended twice"
    left = set(crowd.opened) - set(ended)
    assert crowd.open_in_log() - set(crowd.taken) == left
    assert (len(crowd.handles), _lane.registered()) == (len(left), before + len(left))
    for handle in left:
        assert crowd.handles.take_handle(handle) is not None, "a handle was lost"
        _lane.unregister(handle)
    assert _lane.registered() == before
    assert sum(crowd.read_and_closed) <= crowd.handles.take_read_bytes() <= sum(crowd.read)
