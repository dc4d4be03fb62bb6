"""Lines of the log: one line for any value, without secrets."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.log.format import Redactor, console_line, field_line, printable


@given(st.text() | st.binary())
def test_any_value_is_one_readable_line(value: str | bytes) -> None:
    """Any text and any bytes become one line that can be parsed as one value."""
    event = {"timestamp": 0.0, "level": "info", "event": "x", "path": value}
    line = field_line(event)
    assert len(line.splitlines()) == 1
    line.encode()
    if value:
        shown = line.split(" path=", 1)[1]
        assert re.fullmatch(r'"(?:[^"\\]|\\.)*"|[^\s"=\\]+', shown)
    head = console_line(event, colours=False)
    assert len(head.splitlines()) == 1
    assert not any(ord(character) < 32 for character in printable(head))


def test_secrets_of_the_environment_are_known_by_heart() -> None:
    """A secret from the environment is masked everywhere, also when escaped."""
    secret = 'p"ss\\word with=signs'
    redact = Redactor.from_environment({"AWS_SECRET_ACCESS_KEY": secret})
    event = {"timestamp": 0.0, "level": "info", "event": f"sent {secret}!"}
    assert redact(field_line(event)).endswith('event="sent [redacted]!"')
    assert redact(f"<{secret}>") == "<[redacted]>"


@pytest.mark.parametrize("login", ["user:pass", "user:p%40ss", "u:p@s:s", ":pass"])
def test_logins_in_urls(login: str) -> None:
    """A proxy's user and password never appear, but its address does."""
    redact = Redactor.from_environment({})
    line = f"HTTPS_PROXY=http://{login}@proxy.example.com:3128/ and more"
    assert redact(line) == "HTTPS_PROXY=http://[redacted]@proxy.example.com:3128/ and more"


def test_ordinary_lines_stay_as_they_are() -> None:
    """Keys and errors that only look like credentials are unchanged."""
    redact = Redactor.from_environment({"AWS_SECRET_ACCESS_KEY": "any"})
    for line in (
        "path=/tokens/secret-key/signature.txt errno=EACCES s3_code=SignatureDoesNotMatch",
        "url=https://s3.example.com:9000/a@b endpoint=http://[::1]:9000 from=a:b@c",
        "the credentials have expired; many anyones; authorization failed",
        "continuation-token=1ueGcxLPRx1Tr request_id=4442587FB7D0A2F9",
    ):
        assert redact(line) == line
