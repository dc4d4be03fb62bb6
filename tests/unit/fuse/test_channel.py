"""Extensions of libfuse's answers, tested with bytes recorded from a real kernel."""

import os
import struct

import pytest

from mountpoint.fuse import _channel

#: Linux 6.18 to libfuse 2.9.9: INIT without its header (struct fuse_init_in of 7.36 and later).
REQUEST = bytes.fromhex("07000000 2d000000 00000200 fbffff73 fd050000".replace(" ", "")) + bytes(44)
#: libfuse's answer through the channel, with big_writes and atomic_o_trunc (struct fuse_init_out of
#: 7.13 to 7.22).
ANSWER = bytes.fromhex("07000000 13000000 00000200 29000000 00000000 00001000".replace(" ", ""))
ANSWERED = 0x29  # ASYNC_READ, ATOMIC_O_TRUNC, BIG_WRITES

OUT = struct.Struct("<IIIIHHIIHHI28x")
DIRECT_IO, NOFLUSH = 1 << 0, 1 << 5
ASYNC_DIO, PARALLEL_DIROPS, MAX_PAGES = 1 << 15, 1 << 18, 1 << 22
DO_READDIRPLUS, READDIRPLUS_AUTO = 1 << 13, 1 << 14  # the second: only if programs use them


def request(minor: int, flags: int, *, major: int = 7) -> bytes:
    """Return an INIT of a kernel with protocol version 7.`minor` that offers `flags`."""
    return struct.pack("<IIII", major, minor, 128 << 10, flags)


def test_a_recorded_exchange() -> None:
    """256 pages and more background requests; all else as in libfuse's answer: writes of 1 MiB."""
    answer = _channel.completed_init(REQUEST, ANSWER)
    assert len(answer) == 64
    major, minor, read_ahead, flags, background, congestion, write, grain, pages, *rest = (
        OUT.unpack(answer)
    )
    assert (major, minor, write) == (7, 31, 1 << 20)
    assert flags == ANSWERED | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES
    assert read_ahead >= 1 << 20, "or read_ahead_kb cannot be raised"
    assert (background, congestion, grain, pages) == (64, 48, 1, 256)
    assert not any(rest)


@pytest.mark.parametrize("minor", [28, 31, 45])
def test_the_version_is_one_that_both_know(minor: int) -> None:
    """An older kernel gets an answer in its own version."""
    answer = _channel.completed_init(request(minor, MAX_PAGES), ANSWER)
    assert OUT.unpack(answer)[1] == min(minor, 31)


@pytest.mark.parametrize(
    "asked",
    [request(27, MAX_PAGES), request(45, ~MAX_PAGES & 0xFFFFFFFF), request(45, MAX_PAGES, major=8)],
    ids=["before 4.20", "no MAX_PAGES", "another protocol"],
)
def test_a_kernel_that_offers_too_little(asked: bytes) -> None:
    """libfuse's answer stays unchanged."""
    assert _channel.completed_init(asked, ANSWER) == ANSWER


def test_only_offered_flags_are_set() -> None:
    """The answer has only flags that the kernel offers."""
    answer = _channel.completed_init(request(45, MAX_PAGES), ANSWER)
    assert OUT.unpack(answer)[3] == ANSWERED | MAX_PAGES


@pytest.mark.parametrize("offered", [0, READDIRPLUS_AUTO, DO_READDIRPLUS | READDIRPLUS_AUTO])
def test_listings_with_attributes(offered: int) -> None:
    """The kernel always asks for them if the mount wants that and the kernel offers it."""
    asked = request(45, MAX_PAGES | offered)
    assert OUT.unpack(_channel.completed_init(asked, ANSWER))[3] == ANSWERED | MAX_PAGES
    try:
        _channel.want_attributes(True)
        answer = _channel.completed_init(asked, ANSWER)
    finally:
        _channel.want_attributes(False)
    assert OUT.unpack(answer)[3] == ANSWERED | MAX_PAGES | (offered & DO_READDIRPLUS)


@pytest.mark.parametrize(("asked", "answer"), [(REQUEST[:15], ANSWER), (REQUEST, ANSWER + b"x")])
def test_other_lengths(asked: bytes, answer: bytes) -> None:
    """Other lengths than those of an INIT and its answer are a programming error."""
    with pytest.raises(ValueError, match="INIT"):
        _channel.completed_init(asked, answer)


def test_a_library_that_is_not_loaded() -> None:
    """The functions are not found, and nothing changes."""
    assert not _channel.resolve("/nonexistent/llfuse.so")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (os.O_RDONLY, NOFLUSH),
        (os.O_RDONLY | os.O_DIRECT | os.O_NOATIME, NOFLUSH),
        (os.O_RDONLY | os.O_TRUNC, DIRECT_IO),
        (os.O_WRONLY, DIRECT_IO),
        (os.O_WRONLY | os.O_APPEND, DIRECT_IO),
        (os.O_RDWR | os.O_TRUNC, DIRECT_IO),
        (os.O_RDWR, DIRECT_IO),
    ],
)
def test_open_flags(flags: int, expected: int) -> None:
    """A close after reads waits for nothing; other files do not bypass the page cache."""
    assert _channel.flags_of_open(flags) == expected


def test_no_request() -> None:
    """A thread that serves no request gets no caller."""
    assert _channel.request_pid() == 0
