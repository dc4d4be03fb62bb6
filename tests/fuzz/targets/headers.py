"""The headers of an answer: lines of names and values."""

import contextlib

from mountpoint.errors import BadAnswer
from mountpoint.s3.wire import reading
from mountpoint.s3.wire.errors import error_from_response
from mountpoint.s3.wire.reading import SIZE_MAX_BYTES


def read(data: bytes) -> None:
    """Describe an object and an error: BadAnswer, or values that other code can rely on."""
    lines = [line.partition(":") for line in data.decode("latin-1").split("\n")]
    headers = [(name, value) for name, _, value in lines]
    for status in (200, 206):
        with contextlib.suppress(BadAnswer):
            info = reading.object_info(b"key", status, headers, size_bytes=1)
            assert 0 <= info.size_bytes <= SIZE_MAX_BYTES
            assert info.mtime_ns >= 0
            assert reading.is_header_text(info.etag)
    with contextlib.suppress(BadAnswer):
        bounds = reading.content_range(headers)
        assert bounds is None or 0 <= bounds[0] < bounds[1] <= bounds[2] <= SIZE_MAX_BYTES
    reading.metadata(headers)
    error_from_response(301, headers, None, what="")
