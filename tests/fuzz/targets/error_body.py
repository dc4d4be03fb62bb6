"""The body of an error answer, after two bytes of its status."""

from mountpoint.s3.wire.errors import error_from_response

SECRET = "AKIAIOSFODNN7EXAMPLE"


def read(data: bytes) -> None:
    """Make an error of it: always one line without a key."""
    status = 300 + int.from_bytes(data[:2], "big") % 300
    error = error_from_response(status, [("x-amz-request-id", "1")], data[2:], what="GetObject")
    assert str(error).isprintable()
    assert SECRET not in str(error)
