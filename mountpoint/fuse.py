"""llfuse, over a wider channel to the kernel where that works. The only importer of llfuse.

`_channel` has to be loaded before llfuse and with global symbols, so that llfuse finds our
`fuse_session_receive_buf` and not libfuse's (see there).
"""

import os
import sys

_flags = sys.getdlopenflags()
sys.setdlopenflags(_flags | os.RTLD_GLOBAL)
try:
    from mountpoint import _channel
finally:
    sys.setdlopenflags(_flags)

import llfuse  # noqa: E402  # after _channel

__all__ = ["is_wide", "llfuse", "request_pid", "widen"]

_channel.resolve(llfuse.__file__)


def widen(wanted: bool) -> None:
    """Say, before mounting, whether to negotiate what libfuse cannot."""
    _channel.want(wanted)


def is_wide() -> bool:
    """Whether the kernel offers it and gets it: 1 MiB at a time. Known when llfuse calls `init`."""
    return _channel.negotiated()


def request_pid() -> int:
    """Return who asks for the operation that this thread serves; 0 where that is unknown.

    It is the number of a thread (`processes`). For operations that llfuse gives no `ctx`.
    """
    return _channel.request_pid()
