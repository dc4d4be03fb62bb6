r"""The format of log lines, and the masking of secrets in them. Pure.

In files and syslog a line is `timestamp=... level=... logger=... event="..."` and then the event's
own fields in order. A value with a space, a quote or an escape is in double quotes. Escapes are
used for backslash, double quote, control characters, characters that move the cursor or change the
direction of text, and bytes that are not UTF-8: `\n`, `\x1b`, `\u202e`. So an event is always one
line, and a key cannot forge another.
"""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime

REDACTED = "[redacted]"

#: C0 and C1 controls, line and paragraph separators, bidirectional controls (Unicode TR 9),
#: byte order mark, and surrogates (which are undecodable bytes: PEP 383).
_CONTROL = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_UNPRINTABLE = re.compile(f"[{_CONTROL}]")
_UNSAFE = re.compile(rf'[{_CONTROL}\\"]')
_PLAIN = re.compile(r"[^\s=\"\\]+")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t", "\\": "\\\\", '"': r"\""}

_LONG = {escape: character for character, escape in _SHORT.items()}
_ESCAPED = re.compile(r"\\(?:[nrt\\\"]|x[0-9a-f]{2}|u[0-9a-f]{4})")
#: A field of a line; the closing quote may be cut off.
_PAIR = re.compile(r"([^\s=\"]+)=(?:\"((?:[^\"\\]|\\.)*)\"?|(\S*))")

_FIRST = ("timestamp", "level", "logger", "event", "exception")

_COLOURS = {"debug": 90, "info": 32, "warning": 33, "error": 31, "critical": 35}


def printable(text: str) -> str:
    """Return `text` with all control characters escaped."""
    return _UNPRINTABLE.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Return `text` made safe for a terminal; line ends stay."""
    return "\n".join(printable(line) for line in text.split("\n"))


def field_line(event: Mapping[str, object]) -> str:
    """Return the event as one line, for files and syslog."""
    words = [f"timestamp={_utc(event)}", *_pairs(event, ("level", "logger", "event"))]
    words += _pairs(event, _others(event))
    words += _pairs(event, ("exception",))
    return " ".join(words)


def console_line(event: Mapping[str, object], colours: bool, *, dated: bool = False) -> str:
    """Return the event for a terminal; a traceback follows, indented."""
    level = str(event["level"])
    form = "%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S"
    clock = time.strftime(form, time.localtime(_seconds(event)))
    shown = f"{level.upper():8}"
    if colours:
        shown = f"\x1b[{_COLOURS.get(level, 0)}m{shown}\x1b[0m"
    head = f"{clock} {shown} {event.get('logger', '')}: {printable(_text(event.get('event')))}"
    lines = [" ".join([head, *_pairs(event, _others(event))])]
    if exception := event.get("exception"):
        lines += [f"    {printable(line)}" for line in str(exception).split("\n")]
    return "\n".join(lines)


def parsed(line: str) -> dict[str, object]:
    """Return the event from a line of `field_line`; all values except the time are text.

    The line may be cut off. An escaped byte of 0x80 and above becomes a surrogate again.
    """
    event: dict[str, object] = {"timestamp": 0.0, "level": ""}
    for found in _PAIR.finditer(line):
        name, quoted, plain = found.groups()
        event[name] = plain if quoted is None else _ESCAPED.sub(_unescape, quoted)
    with contextlib.suppress(ValueError):
        event["timestamp"] = datetime.fromisoformat(str(event["timestamp"])).timestamp()
    return event


def _pairs(event: Mapping[str, object], names: Iterator[str] | tuple[str, ...]) -> list[str]:
    return [f"{name}={_quoted(event[name])}" for name in names if name in event]


def _others(event: Mapping[str, object]) -> Iterator[str]:
    """Yield the names of the event's own fields, without empty ones."""
    for name, value in event.items():
        if name not in _FIRST and name != "exc_info" and value is not None and value != "":
            yield name


def _quoted(value: object) -> str:
    text = _text(value)
    if _PLAIN.fullmatch(text) and not _UNSAFE.search(text):
        return text
    return f'"{_UNSAFE.sub(_escape, text)}"'


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def _escape(found: re.Match[str]) -> str:
    character = found.group()
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _unescape(found: re.Match[str]) -> str:
    escape = found.group()
    if escape in _LONG:
        return _LONG[escape]
    code = int(escape[2:], 16)
    return chr(code + 0xDC00 if escape[1] == "x" and code >= 0x80 else code)


def _seconds(event: Mapping[str, object]) -> float:
    seconds = event.get("timestamp")
    return seconds if isinstance(seconds, float) else 0.0


def _utc(event: Mapping[str, object]) -> str:
    seconds = _seconds(event)
    micros = int(seconds % 1 * 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros:06}Z"


# Redaction

#: Names of secret fields, without separators, in headers, query strings, environment, credential
#: files, and JSON or XML answers of STS, SSO, IMDS and S3.
_SECRET_NAMES = (
    r"x[-_]amz[-_]security[-_]token",
    r"x[-_]amz[-_]s3session[-_]token",
    r"x[-_]amz[-_]sso[-_]bearer[-_]token",
    r"x[-_]aws[-_]ec2[-_]metadata[-_]token",
    r"x[-_]amz[-_]server[-_]side[-_]encryption[-_]customer[-_]key",
    r"proxy-authorization",
    r"authorization(?:[-_]?token)?",
    r"signature(?:provided)?",
    r"credential",
    r"secret[-_]?(?:access)?[-_]?key",
    r"client[-_]?secret",
    r"(?:session|security|access|refresh|id|identity|bearer)[-_]?token",
    r"password",
)

#: name, separator (": ", "=", ">", "': b'", "', '"), an authorization scheme, the value. Quotes and
#: line ends may be escaped in a finished line.
_NAMED = re.compile(
    rf"""
    ( (?:{"|".join(_SECRET_NAMES)})
      (?: \\*["']? \s* [:=>] (?: \s | \\+[nrt] )* | \\*["'] \s* , \s* )
      (?: b? \\*["'] )?
      (?: (?:AWS4[\w-]* | AWS | Bearer | Basic) \s+ )? )
    (?! \[redacted\] )
    [^\s"'\\<>&,;)}}\]]+
    """,
    re.IGNORECASE | re.VERBOSE,
)
#: Long-term and temporary access key ids, and bare session tokens by their common start.
#: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
_KNOWN = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{12,124}\b|\b(?:IQoJ|FwoG|FQoG|AgoJ)[A-Za-z0-9+/=_%-]{40,}"
)
#: User and password in a URL, such as a proxy's.
_LOGIN = re.compile(r"(?<=://)[^\s/\"'\\]*:[^\s/\"'\\]*(?=@)")
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)


class Redactor:
    """Masks credentials in a finished line: by name, by form, and known values."""

    def __init__(self, secrets: list[str]) -> None:
        # Masking a secret of a few letters, as test servers have them, would garble every line.
        words = {form for secret in secrets if len(secret) >= 8 for form in _forms(secret)}
        longest_first = sorted(words, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if words else None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Redactor":
        """Return a redactor that also knows the secrets in the environment."""
        return cls([environ[name] for name in _SECRET_VARIABLES if name in environ])

    def __call__(self, line: str) -> str:
        """Return `line` without credentials."""
        if self._secrets is not None:
            line = self._secrets.sub(REDACTED, line)
        line = _LOGIN.sub(REDACTED, line)
        return _KNOWN.sub(REDACTED, _NAMED.sub(rf"\1{REDACTED}", line))


def _forms(secret: str) -> tuple[str, str]:
    return secret, _UNSAFE.sub(_escape, secret)
