"""Which directories are descriptors; what becomes of them is tested with mounts."""

import pytest

from mountpoint.fuse.fd_mount import number_of


@pytest.mark.parametrize(
    ("directory", "number"),
    [
        ("/dev/fd/3", 3),
        ("/dev/fd/378", 378),
        ("/dev/fd/-1", None),
        ("/dev/fd/", None),
        ("/dev/fd/3/", None),
        ("/dev/fd/\u0663", None),
        ("/mnt/fd/3", None),
        ("dev/fd/3", None),
        ("", None),
    ],
)
def test_syntax(directory: str, number: int | None) -> None:
    """Only /dev/fd/N is one, as in the reference."""
    assert number_of(directory) == number
