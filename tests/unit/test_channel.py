"""What is added to libfuse's answer to INIT: with bytes recorded from a real kernel."""

import struct

import pytest

from mountpoint import _channel

#: Linux 6.18 to libfuse 2.9.9: INIT without its header (struct fuse_init_in of 7.36 and later).
REQUEST = bytes.fromhex("07000000 2d000000 00000200 fbffff73 fd050000".replace(" ", "")) + bytes(44)
#: What libfuse answered (struct fuse_init_out of 7.13 to 7.22).
ANSWER = bytes.fromhex("07000000 13000000 00000200 01000000 00000000 00000200".replace(" ", ""))

OUT = struct.Struct("<IIIIHHIIHHI28x")
ASYNC_DIO, PARALLEL_DIROPS, MAX_PAGES = 1 << 15, 1 << 18, 1 << 22


def request(minor: int, flags: int, *, major: int = 7) -> bytes:
    """Return an INIT of a kernel that speaks `minor` and offers `flags`."""
    return struct.pack("<IIII", major, minor, 128 << 10, flags)


def test_a_recorded_exchange() -> None:
    """Reads of 256 pages, more in the background, everything else as libfuse said it."""
    answer = _channel.completed_init(REQUEST, ANSWER)
    assert len(answer) == 64
    major, minor, read_ahead, flags, background, congestion, write, grain, pages, *rest = (
        OUT.unpack(answer)
    )
    assert (major, minor, write) == (7, 31, 128 << 10)
    assert flags == 1 | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES
    assert read_ahead >= 1 << 20, "or read_ahead_kb cannot be raised"
    assert (background, congestion, grain, pages) == (64, 48, 1, 256)
    assert not any(rest)


@pytest.mark.parametrize("minor", [28, 31, 45])
def test_the_version_is_one_that_both_know(minor: int) -> None:
    """An older kernel is answered in its own version."""
    answer = _channel.completed_init(request(minor, MAX_PAGES), ANSWER)
    assert OUT.unpack(answer)[1] == min(minor, 31)


@pytest.mark.parametrize(
    "asked",
    [request(27, MAX_PAGES), request(45, ~MAX_PAGES & 0xFFFFFFFF), request(45, MAX_PAGES, major=8)],
    ids=["before 4.20", "no MAX_PAGES", "another protocol"],
)
def test_a_kernel_that_offers_too_little(asked: bytes) -> None:
    """libfuse's answer stays as it is."""
    assert _channel.completed_init(asked, ANSWER) == ANSWER


def test_only_what_was_offered() -> None:
    """A flag that the kernel does not have is not asked for."""
    answer = _channel.completed_init(request(45, MAX_PAGES), ANSWER)
    assert OUT.unpack(answer)[3] == 1 | MAX_PAGES


@pytest.mark.parametrize(("asked", "answer"), [(REQUEST[:15], ANSWER), (REQUEST, ANSWER + b"x")])
def test_other_lengths(asked: bytes, answer: bytes) -> None:
    """What is not an INIT and libfuse's answer is a mistake of the caller."""
    with pytest.raises(ValueError, match="INIT"):
        _channel.completed_init(asked, answer)


def test_a_library_that_is_not_loaded() -> None:
    """Nothing is found, and nothing is changed."""
    assert not _channel.resolve("/nonexistent/llfuse.so")
