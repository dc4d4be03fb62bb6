"""The journal of a staged file."""

import contextlib
import json
import os
from pathlib import Path

from mountpoint.staging.journal import SIZE_MAX_BYTES, description, replay


def read(data: bytes) -> None:
    """Replay it: ValueError, or a state that a file can have."""
    file = os.memfd_create("journal")
    try:
        os.write(file, data)
        with contextlib.suppress(ValueError):
            subject, extents = replay(Path(f"/proc/self/fd/{file}"))
            extents.check()
            assert extents.size_bytes <= SIZE_MAX_BYTES
            assert isinstance(subject.bucket, str)
            json.dumps(description(Path("000001.data"), subject, extents))
    finally:
        os.close(file)
