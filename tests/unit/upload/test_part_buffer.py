"""The bytes of a part, in memory or in temporary files, which are removed."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mountpoint.s3.crt.body import BodyStream
from mountpoint.s3.wire import checksum
from mountpoint.system.spill import Spill
from mountpoint.upload.part_buffer import SMALL_BYTES, PartBuffer

MIB = 1 << 20


def open_files() -> int:
    """Return the number of this process's descriptors."""
    return len(os.listdir("/proc/self/fd"))


@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(SMALL_BYTES, SMALL_BYTES + 9))))
def test_part_buffer(writes: list[bytes | int]) -> None:
    """A part has the bytes of all writes, small and large, with their checksum."""
    buffer = PartBuffer("crc32c")
    data = [bytes([each % 251]) * each if isinstance(each, int) else each for each in writes]
    for each in data:
        buffer.append(each)
    body = buffer.body()
    assert b"".join(map(bytes, body.pieces)) == b"".join(data)
    assert body.size_bytes == body.memory_bytes == sum(map(len, data))
    hashed = checksum.ALGORITHMS["crc32c"].new()
    hashed.update(b"".join(data))
    assert body.checksum is not None
    assert body.checksum.value == checksum.encoded(hashed.digest())


def test_bytes_are_kept_as_they_came_or_put_together() -> None:
    """A large write is not copied; a million small ones are joined."""
    buffer = PartBuffer(None)
    large = bytes(SMALL_BYTES)
    buffer.append(large)
    for _ in range(1_000_000):
        buffer.append(b"x")
    body = buffer.body()
    assert body.pieces[0] is large
    assert len(body.pieces) < 10
    assert body.checksum is None


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 3 * SMALL_BYTES))), st.integers(1, SMALL_BYTES)
)
def test_spilled(writes: list[tuple[bool, int]], step: int) -> None:
    """Bytes in memory and in files are in the order of the writes, however they are read."""
    spill = Spill(["/var/tmp"])
    before = open_files()
    buffer, whole = PartBuffer("crc32c"), bytearray()
    for index, (spilled, size) in enumerate(writes):
        data = bytes([index % 251]) * size
        whole += data
        if spilled:
            assert buffer.spill(data, spill)
        else:
            buffer.append(data)
    body = buffer.body()
    assert body.size_bytes == len(whole)
    assert body.memory_bytes == sum(size for spilled, size in writes if not spilled)
    hashed = checksum.ALGORITHMS["crc32c"].new()
    hashed.update(bytes(whole))
    assert buffer.digest == hashed.digest()
    assert open_files() == before + any(spilled for spilled, _ in writes), "one for the part"
    # At most some hundred reads: a byte at a time only of what is short.
    step = max(step, len(whole) // 500)
    stream, chunk, read = BodyStream(body), bytearray(step), bytearray()
    while size := stream.readinto1(memoryview(chunk)):
        read += chunk[:size]
    assert read == whole
    del buffer, body, stream
    assert open_files() == before


def test_without_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files have no names, even if the file system does not support that."""
    for number in (1, 2):
        spill = Spill([str(tmp_path / "missing"), str(tmp_path)])
        buffer = PartBuffer(None)
        with capture_logs() as logs:
            assert buffer.spill(b"x" * number, spill)
            assert buffer.spill(b"y", spill)
        assert [line["directory"] for line in logs] == [str(tmp_path)]
        assert list(tmp_path.iterdir()) == []
        assert b"".join(map(bytes, buffer.body().pieces)) == b"x" * number + b"y"
        monkeypatch.setattr(os, "O_TMPFILE", os.O_CREAT | os.O_DIRECTORY)  # refused


@pytest.mark.parametrize("full", [False, True])
def test_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """If no file can be written, the log says so once, and the gathered bytes stay."""
    spill = Spill([str(tmp_path)] if full else [str(tmp_path / "missing")])
    buffer = PartBuffer(None)
    buffer.append(b"first")
    before = open_files()

    def no_room(*_: object) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(os, "pwrite", no_room)
    with capture_logs() as logs:
        assert not buffer.spill(b"x", spill)
        assert not buffer.spill(b"x", spill)
    (line,) = logs
    assert line["log_level"] == "warning"
    assert "--memory-target" in line["event"]
    buffer.append(b"second")
    assert b"".join(map(bytes, buffer.body().pieces)) == b"firstsecond"
    assert open_files() == before
