"""The options of a line in /etc/fstab."""

import contextlib

from mountpoint.cli.fstab import kernel_options, long_options, split_items
from mountpoint.errors import MountError

KNOWN = ["prefix", "read-only", "uid"]


def read(data: bytes) -> None:
    """Split them: MountError, or items that give the same text again."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(MountError):
        for item in long_options([text], KNOWN, KNOWN):
            assert item.startswith("--")
        kernel_options([text])
        items = split_items(text)
        escaped = ",".join("".join(rf"\{c}" if c in ',\\"' else c for c in each) for each in items)
        assert split_items(escaped) == items
