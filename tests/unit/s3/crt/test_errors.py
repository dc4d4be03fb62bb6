"""The meaning of the CRT's own errors, in words for users."""

import pytest
from awscrt import exceptions

from mountpoint.errors import (
    AccessDenied,
    CredentialsUnavailable,
    ServerFault,
    Throttled,
    TransportFault,
    Unusable,
)
from mountpoint.s3.crt.errors import REFUSALS, SENSELESS, UNUSABLE, WORDS, crt_error

#: The numbers in aws-c-*: 1024 for each library.
NAMES = {
    error.name: error.message
    for base in (0, 1024, 2048, 14336)
    for error in map(exceptions.from_code, range(base, base + 200))
    if getattr(error, "name", "").startswith("AWS_")
}


def test_all_names_are_the_librarys() -> None:
    """A name that the library does not have would never match."""
    assert {*REFUSALS, *UNUSABLE, *SENSELESS, *WORDS} <= set(NAMES)


def test_no_code_is_shown() -> None:
    """Our sentences have neither the library's names nor its full stops."""
    for name in NAMES:
        text = str(crt_error(name, NAMES[name]))
        assert text, name
        assert name not in text
        assert not text.endswith("."), name


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("AWS_IO_SOCKET_CONNECTION_REFUSED", TransportFault, "the connection was refused"),
        ("AWS_ERROR_S3_SLOW_DOWN", Throttled, "SlowDown"),
        ("AWS_ERROR_S3_INTERNAL_ERROR", ServerFault, "InternalError"),
        ("AWS_ERROR_S3_REQUEST_TIME_TOO_SKEWED", AccessDenied, "RequestTimeTooSkewed"),
        ("AWS_ERROR_S3_MISSING_ETAG", Unusable, "the answer has no ETag of the object"),
        ("AWS_AUTH_CREDENTIALS_X", CredentialsUnavailable, "no credentials"),
        ("ValueError", TransportFault, "odd"),
    ],
)
def test_meanings(name: str, kind: type[Exception], text: str) -> None:
    """The class decides whether a request is retried."""
    error = crt_error(name, "odd.")
    assert type(error) is kind
    assert text in str(error)
