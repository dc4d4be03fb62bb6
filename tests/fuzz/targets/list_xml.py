"""A page of a listing."""

import contextlib

from mountpoint.errors import BadAnswer
from mountpoint.s3.wire.reading import SIZE_MAX_BYTES, parse_list

PREFIX = b"a/"


def read(data: bytes) -> None:
    """Parse a page: BadAnswer, or entries below the prefix."""
    with contextlib.suppress(BadAnswer):
        page = parse_list(data, PREFIX)
        assert all(each.key.startswith(PREFIX) for each in page.objects)
        assert all(0 <= each.size_bytes <= SIZE_MAX_BYTES for each in page.objects)
        assert all(name.startswith(PREFIX) and name.endswith(b"/") for name in page.prefixes)
        assert page.skipped >= 0
        assert page.next_token != ""
