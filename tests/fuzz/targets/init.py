"""The kernel's INIT, and libfuse's answer to it, which has 24 bytes."""

import contextlib
import struct

from mountpoint.fuse._channel import completed_init

ANSWER_BYTES = 24


def read(data: bytes) -> None:
    """Complete the answer: ValueError, or one of a length that the kernel knows."""
    request, answer = data[:-ANSWER_BYTES], data[-ANSWER_BYTES:]
    with contextlib.suppress(ValueError):
        completed = completed_init(request, answer)
        assert len(completed) in (ANSWER_BYTES, 64)
        if len(completed) == 64:  # flags that libfuse has not answered were offered
            offered, answered = struct.unpack_from("<I", request, 12), answer[12:16]
            flags = struct.unpack_from("<I", completed, 12)[0]
            assert flags & ~(offered[0] | int.from_bytes(answered, "little")) == 0
