"""The log in mapped memory: what is appended, where it ends, other memory, threads."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mountpoint.native._journal import Journal

PAGE = 4096


@contextmanager
def memory(size: int) -> Iterator[int]:
    """Make a file in memory; yield its descriptor."""
    file = os.memfd_create("journal")
    try:
        os.ftruncate(file, size)
        yield file
    finally:
        os.close(file)


def text_of(file: int) -> bytes:
    """Return what was written, without the zeros that follow."""
    return os.pread(file, os.fstat(file).st_size, 0).rstrip(b"\0")


def test_lines_follow_each_other() -> None:
    """Each line stands in the file after the one before."""
    with memory(PAGE) as file:
        journal = Journal()
        journal.map(file, 0)
        assert journal.append(b"one\n")
        assert text_of(file) == b"one\n"
        assert journal.append(b"")
        assert journal.append(b"two\n")
        assert text_of(file) == b"one\ntwo\n"


def test_without_memory() -> None:
    """A log that was never mapped takes no line, not even an empty one."""
    journal = Journal()
    assert not journal.append(b"line\n")
    assert not journal.append(b"")


def test_it_appends_after_what_is_there() -> None:
    """The bytes before `end` stay as they are."""
    with memory(PAGE) as file:
        os.pwrite(file, b"before\nrest", 0)
        journal = Journal()
        journal.map(file, 7)
        assert journal.append(b"line\n")
        assert text_of(file) == b"before\nline\n"


@pytest.mark.parametrize("size", [10, PAGE, PAGE + 10])
def test_room(size: int) -> None:
    """A line may end where the file ends; a longer one is refused, and leaves the room there is."""
    with memory(size) as file:
        journal = Journal()
        journal.map(file, size - 10)
        assert not journal.append(b"x" * 11)
        assert journal.append(b"a" * 6)
        assert not journal.append(b"y" * 5)
        assert journal.append(b"b" * 4)
        assert not journal.append(b"z")
        assert journal.append(b"")
        assert os.fstat(file).st_size == size
        assert os.pread(file, 11, size - 10) == b"aaaaaabbbb"


def test_a_file_that_is_full() -> None:
    """A log that begins at the end of its file has no room."""
    with memory(PAGE) as file:
        journal = Journal()
        journal.map(file, PAGE)
        assert not journal.append(b"x")


def test_seal() -> None:
    """After `seal` no line is taken, until there is other memory."""
    with memory(PAGE) as first, memory(PAGE) as second:
        journal = Journal()
        journal.map(first, 0)
        assert journal.append(b"one\n")
        journal.seal()
        journal.seal()
        assert not journal.append(b"lost\n")
        journal.map(second, 0)
        assert journal.append(b"two\n")
        assert (text_of(first), text_of(second)) == (b"one\n", b"two\n")


def test_other_memory() -> None:
    """The lines go to the file that was mapped last, also if the first one is closed."""
    journal = Journal()
    with memory(10) as first:
        journal.map(first, 0)
        assert journal.append(b"one\n")
        assert not journal.append(b"a longer line\n")
    with memory(PAGE) as second:
        journal.map(second, 0)
        assert journal.append(b"a longer line\n")
        assert text_of(second) == b"a longer line\n"


def test_the_file_may_be_closed() -> None:
    """The log keeps its memory when the descriptor is closed; another one sees the lines."""
    with memory(PAGE) as other:
        file = os.dup(other)
        journal = Journal()
        journal.map(file, 0)
        os.close(file)
        assert journal.append(b"line\n")
        assert text_of(other) == b"line\n"


@pytest.mark.parametrize("end", [11, PAGE, (1 << 63) - 1])
def test_a_file_that_is_too_short(end: int) -> None:
    """A log cannot begin behind the end of its file; the one before goes on."""
    with memory(PAGE) as before, memory(10) as file:
        journal = Journal()
        journal.map(before, 0)
        with pytest.raises(OSError, match="the log cannot be mapped"):
            journal.map(file, end)
        assert journal.append(b"line\n")
        assert text_of(before) == b"line\n"


def test_an_empty_file() -> None:
    """Nothing can be mapped of an empty file."""
    with memory(0) as file, pytest.raises(OSError, match="the log cannot be mapped"):
        Journal().map(file, 0)


@pytest.mark.parametrize("kind", ["closed", "negative", "read-only", "pipe"])
def test_a_bad_descriptor(kind: str) -> None:
    """What cannot be mapped is refused; the log has no memory then."""
    journal = Journal()
    reading, writing = os.pipe()
    with memory(PAGE) as file:
        read_only = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
        closed = os.dup(file)
        os.close(closed)
        bad = {"closed": closed, "negative": -1, "read-only": read_only, "pipe": reading}[kind]
        with pytest.raises(OSError, match="the log cannot be mapped"):
            journal.map(bad, 0)
        for each in (read_only, reading, writing):
            os.close(each)
    assert not journal.append(b"line\n")


def test_wrong_arguments() -> None:
    """Only bytes are lines, and no log begins before its file."""
    journal = Journal()
    with pytest.raises(TypeError):
        journal.append(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        journal.append("text")  # type: ignore[arg-type]
    with memory(PAGE) as file, pytest.raises(OverflowError):
        journal.map(file, -1)


@pytest.mark.parametrize("end", [1 << 63, (1 << 64) - 1])
def test_a_huge_end(end: int) -> None:
    """An end that is no size of a file is refused."""
    with memory(PAGE) as file, pytest.raises(OSError, match="the log cannot be mapped"):
        Journal().map(file, end)


KILLED = """
import os, signal, sys
from mountpoint.native._journal import Journal
journal = Journal()
journal.map(int(sys.argv[1]), 0)
assert journal.append(b"line\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed() -> None:
    """A line that was appended is there if the process is killed right after it."""
    with memory(PAGE) as file:
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(file)], pass_fds=[file], check=False
        )
        assert done.returncode == -9
        assert text_of(file) == b"line\n"


# --- threads ---


def append_from_threads(journal: Journal, lines: int, count: int = 2) -> list[list[bytes]]:
    """Let threads append lines at the same time; return those of each that were taken."""
    taken: list[list[bytes]] = [[] for _ in range(count)]
    begin = threading.Barrier(count)

    def work(number: int) -> None:
        begin.wait()
        for turn in range(lines):
            line = b"%d %d " % (number, turn) + bytes([97 + number]) * (turn % 60) + b"\n"
            if journal.append(line):
                taken[number].append(line)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


@pytest.fixture
def _turns() -> Iterator[None]:
    """Let threads take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def of_thread(text: bytes, number: int) -> list[bytes]:
    """Return the lines that one thread has appended, in the order of the text."""
    return [line for line in text.splitlines(keepends=True) if line.startswith(b"%d " % number)]


@pytest.mark.usefixtures("_turns")
@pytest.mark.parametrize("size", [1 << 20, 20_000])
def test_two_threads(size: int) -> None:
    """All lines are whole, and those of each thread in order, also if there is no room for all."""
    with memory(size) as file:
        journal = Journal()
        journal.map(file, 0)
        taken = append_from_threads(journal, 1000)
        text = text_of(file)
        assert [of_thread(text, number) for number in range(2)] == taken
        assert len(text) == sum(len(line) for lines in taken for line in lines)
        if size == 1 << 20:
            assert [len(lines) for lines in taken] == [1000, 1000]


@pytest.mark.usefixtures("_turns")
def test_threads_and_other_memory() -> None:
    """While one thread seals the log and maps other files, each line that was taken is in one."""
    with memory(1 << 20) as first, memory(1 << 20) as second:
        journal = Journal()
        journal.map(first, 0)
        stopping = threading.Event()

        def change() -> None:
            while not stopping.is_set():
                for file in (second, first):
                    journal.seal()
                    journal.map(file, len(text_of(file)))

        changing = threading.Thread(target=change)
        changing.start()
        try:
            taken = append_from_threads(journal, 500)
        finally:
            stopping.set()
            changing.join()
        texts = text_of(first), text_of(second)
        for number, lines in enumerate(taken):
            found = [line for text in texts for line in of_thread(text, number)]
            assert sorted(found) == sorted(lines)
        assert sum(map(len, texts)) == sum(len(line) for lines in taken for line in lines)
