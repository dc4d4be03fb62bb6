"""The syntax of /dev/fd/N; tests/mount/test_descriptor.py has the mounts."""

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
    """Only /dev/fd/N is a descriptor, as in AWS's mount-s3."""
    assert number_of(directory) == number
