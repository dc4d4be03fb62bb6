"""How much of a file is fetched at its open: as much as was read of its siblings."""

import itertools

import pytest

from mountpoint.read.history import (
    ALIKE_BYTES,
    INITIAL_BYTES,
    INITIAL_PART_BYTES,
    LARGEST_WHOLE_BYTES,
    LAST_FILES,
    LOOK_BYTES,
    MAX_DIRECTORIES,
    WHOLE_BYTES,
    ReadHistory,
    parts_of,
)

MIB = 1 << 20


class Open:
    """An open file in d/, with the bytes read of it, from its initial range or elsewhere."""

    def __init__(self, size_bytes: int, read_bytes: int, *, initial_read: bool = True) -> None:
        self.key = b"d/open"
        self.size_bytes = size_bytes
        self.read_bytes = read_bytes
        self.initial_read = initial_read


def after(*files: tuple[int, int]) -> ReadHistory:
    """Return the history after files of d/: size and bytes read of each."""
    history = ReadHistory()
    for index, (size, read) in enumerate(files):
        history.closed(b"d/%d" % index, size, read)
    return history


@pytest.mark.parametrize(
    ("size", "initial"),
    [
        (1, 1),
        (WHOLE_BYTES, WHOLE_BYTES),
        (WHOLE_BYTES + 1, INITIAL_BYTES),
        (1 << 40, INITIAL_BYTES),
    ],
)
def test_without_experience(size: int, initial: int) -> None:
    """Small files are fetched whole, and the initial range of others."""
    assert ReadHistory().initial_bytes(b"d/a", size) == initial


def test_files_that_are_read_whole() -> None:
    """After two such files one of a few MiB is fetched whole, and a large one is not."""
    whole = (2 * MIB, 2 * MIB)
    assert after(whole, whole).initial_bytes(b"d/a", LARGEST_WHOLE_BYTES) == LARGEST_WHOLE_BYTES
    assert after(whole, whole).initial_bytes(b"d/a", LARGEST_WHOLE_BYTES + 1) == INITIAL_BYTES


@pytest.mark.parametrize(
    ("read", "size", "initial"),
    [
        (2 * MIB, 4 * MIB, 4 * MIB),
        (2 * MIB, 4 * MIB + 1, INITIAL_BYTES),
        (LARGEST_WHOLE_BYTES, LARGEST_WHOLE_BYTES, LARGEST_WHOLE_BYTES),
        (LARGEST_WHOLE_BYTES, LARGEST_WHOLE_BYTES + 1, INITIAL_BYTES),
        (5000, WHOLE_BYTES, WHOLE_BYTES),
        (5000, WHOLE_BYTES + 1, INITIAL_BYTES),
    ],
)
def test_one_file_that_was_read_whole(read: int, size: int, initial: int) -> None:
    """After one such file another that is not much larger is fetched whole."""
    assert after((read, read)).initial_bytes(b"d/a", size) == initial
    assert after((read, read), (MIB, 5000)).initial_bytes(b"d/a", WHOLE_BYTES + 1) == INITIAL_BYTES


def test_files_that_are_looked_at() -> None:
    """After a file of which little was read, little is fetched; one that is read ends that."""
    little = [(100_000, 5000)] * LAST_FILES
    for count in range(1, LAST_FILES + 1):
        assert after(*little[:count]).initial_bytes(b"d/a", 100_000) == 8192
        read = after(*little[:count], (50_000, 50_000))
        assert read.initial_bytes(b"d/a", 50_000) == 50_000
    assert after(*little[:2], (50_000, 50_000)).initial_bytes(b"d/a", 100_000) == 100_000


@pytest.mark.parametrize(
    ("reads", "initial", "reach"),
    [
        ([100_000], INITIAL_BYTES, 102_400),
        ([100_000, 60_000], 102_400, 102_400),
        ([100_000, 40_000], INITIAL_BYTES, 102_400),
        ([ALIKE_BYTES + 1] * 2, INITIAL_BYTES, ALIKE_BYTES + 4096),
        ([LOOK_BYTES] * 4, INITIAL_BYTES, LOOK_BYTES),
        ([5000] * 3 + [LOOK_BYTES + 1], INITIAL_BYTES, LOOK_BYTES + 4096),
    ],
)
def test_reach_of_programs(reads: list[int], initial: int, reach: int) -> None:
    """As much as was read of each file is fetched with open, and limits the read-ahead."""
    history = after(*((4 * MIB, read) for read in reads))
    assert history.initial_bytes(b"d/a", 4 * MIB) == initial
    assert history.reach_bytes(b"d/a") == reach
    assert history.is_looked_at(b"d/a") == (max(reads) <= LOOK_BYTES)


def test_nothing_is_known_of_how_far_programs_look() -> None:
    """Not without a history, and not if files are read whole."""
    for history in (ReadHistory(), after((5000, 5000))):
        assert history.reach_bytes(b"d/a") is None
        assert not history.is_looked_at(b"d/a")


def test_files_that_are_read_elsewhere() -> None:
    """A reader of the ends of files also looks at them, but not one that reads much of them."""
    history = ReadHistory()
    for read, looks in ((20_000, True), (LOOK_BYTES + 1, False)):
        history.closed(b"d/a", 9 * MIB, read, elsewhere=True)
        assert history.reach_bytes(b"d/a") == 4096
        assert history.initial_bytes(b"d/a", 9 * MIB) == 4096
        assert history.is_looked_at(b"d/a") == looks


def test_exact_reads_count_more() -> None:
    """Exact reads count more than those that the kernel has enlarged."""
    history = after((4 * MIB, 16_384))
    assert history.initial_bytes(b"d/a", 4 * MIB) == 16_384
    history.closed(b"d/1", 4 * MIB, 4096, exact=True)
    assert history.initial_bytes(b"d/a", 4 * MIB) == 4096


def test_files_of_which_nothing_was_read() -> None:
    """At least one page: open sends a request in any case."""
    assert after(*[(100_000, 0)] * LAST_FILES).initial_bytes(b"d/a", 100_000) == 4096


@pytest.mark.parametrize(
    ("initial", "most", "sizes"),
    [
        (1, MIB, [1]),
        (WHOLE_BYTES, MIB, [WHOLE_BYTES]),
        (WHOLE_BYTES, 600_000, [600_000, WHOLE_BYTES - 600_000]),
        (WHOLE_BYTES + 1, 8 * MIB, [INITIAL_PART_BYTES, WHOLE_BYTES + 1 - INITIAL_PART_BYTES]),
        (5 * MIB, 8 * MIB, [INITIAL_PART_BYTES] * 6 + [5 * MIB - 6 * INITIAL_PART_BYTES]),
    ],
)
def test_an_initial_range_in_parts(initial: int, most: int, sizes: list[int]) -> None:
    """An initial range of the usual size of small files is one request; a larger one is several."""
    parts = parts_of(initial, most)
    assert [stop - start for start, stop in parts] == sizes
    assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]


def test_each_directory_for_itself() -> None:
    """Reads elsewhere do not count, neither in a parent nor in a child directory."""
    history = after(*[(5 * MIB, 5 * MIB)] * LAST_FILES)
    for key in (b"a", b"e/a", b"d/d/a"):
        assert history.initial_bytes(key, 5 * MIB) == INITIAL_BYTES


def test_old_experience_goes() -> None:
    """Beyond the limit the least recently used directory is forgotten."""
    history = after(*[(5 * MIB, 5 * MIB)] * 2)
    for index in range(MAX_DIRECTORIES - 1):
        history.closed(b"%d/a" % index, 1, 1)
    assert history.initial_bytes(b"d/a", 5 * MIB) == 5 * MIB
    history.closed(b"one/more", 1, 1)
    assert history.initial_bytes(b"d/a", 5 * MIB) == INITIAL_BYTES


# --- Open files ---


def test_open_files_teach_their_opener() -> None:
    """Open files of an opener predict its next file, until one has been closed."""
    history = ReadHistory()
    read = [Open(5 * MIB, 100_000) for _ in range(2)]
    for file in read:
        history.used(file, 7)
    assert history.initial_bytes(b"d/a", 5 * MIB, 7) == 102_400
    assert history.reach_bytes(b"d/a", 7) == 102_400
    for key, opener in ((b"d/a", 8), (b"d/a", 0), (b"e/a", 7)):
        assert history.initial_bytes(key, 5 * MIB, opener) == INITIAL_BYTES
        assert history.reach_bytes(key, opener) is None
    assert not history.is_looked_at(b"d/a")
    history.closed(b"d/b", 5 * MIB, 5 * MIB)
    assert history.reach_bytes(b"d/a", 7) is None


def test_an_open_file_that_is_read_elsewhere() -> None:
    """Then initial ranges are not read."""
    history = ReadHistory()
    history.used(Open(5 * MIB, 100_000, initial_read=False), 7)
    assert history.initial_bytes(b"d/a", 5 * MIB, 7) == 4096


def test_nothing_is_learnt_from_files_that_are_closed_or_unknown() -> None:
    """Closed files and unknown openers do not count."""
    history = ReadHistory()
    file = Open(5 * MIB, 100_000)
    history.used(file, 7)
    history.left(file, 7)
    history.left(file, 7)
    history.used(file, 0)
    for opener in (0, 7):
        assert history.reach_bytes(b"d/a", opener) is None


@pytest.mark.parametrize("count", range(5))
def test_small_files_that_are_read_whole(count: int) -> None:
    """They are those that an open would fetch whole, unless programs only look at them."""
    closed = [(size, read) for size in (100, 100_000, 2 * MIB) for read in (0, 50, size // 2, size)]
    for files in itertools.product(closed, repeat=min(count, 3)):
        history = ReadHistory()
        for size, read in files * (1 if count < 4 else 2):
            history.closed(b"d/x", size, read)
        for size in (1, 100, 10_000, MIB):
            whole = history.initial_bytes(b"d/y", size) == size
            expected = whole and not history.is_looked_at(b"d/y")
            assert history.reads_whole(b"d/y", size) == expected, (files, size)


def test_many_files_are_opened_before_any_is_read() -> None:
    """Only initial ranges are fetched, except of small files; files read are remembered longest."""
    history = ReadHistory()
    files = [Open(MIB, 0) for _ in range(100)]
    for count, file in enumerate(files):
        whole = count < LAST_FILES
        assert history.initial_bytes(b"d/a", MIB, 7) == (MIB if whole else INITIAL_BYTES)
        assert history.initial_bytes(b"d/a", ALIKE_BYTES, 7) == ALIKE_BYTES
        history.used(file, 7)
    history.used(files[0], 7)
    files[0].read_bytes = 5000
    assert history.reach_bytes(b"d/a", 7) == 8192
