"""Logging: outputs, levels, the format of a line, and credentials that never appear."""

import io
import logging
import os
import re
import socket
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from mountpoint.config import LogConfig
from mountpoint.errors import MountError
from mountpoint.log.filter import OFF, TRACE
from mountpoint.log.format import console_line
from mountpoint.log.setup import (
    _Bridge,
    configure_log,
    crt_log_level,
    effective_filter,
    log_location,
)

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TOKEN = "IQoJb3JpZ2luX2VjEJr//////////wEaCXVzLWVhc3QtMSJHMEUCIQDk" + "Zx9+/aB3" * 20 + "=="
SIGNATURE = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"


def bridges() -> list[logging.Handler]:
    """Return our handlers at the root logger."""
    return [one for one in logging.getLogger().handlers if isinstance(one, _Bridge)]


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the process's logging."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    root = logging.getLogger()
    level = root.level
    names = ("awscrt", "awscrt.io", "botocore", "mountpoint", "mountpoint.read")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for handler in bridges():
        root.removeHandler(handler)
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(False)
    structlog.reset_defaults()


class Stderr:
    """The output in the foreground."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        """Return all of it."""
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Stderr:
    """Return the stream for the foreground."""
    return Stderr(capsys)


def log_lines(directory: Path) -> list[str]:
    """Return the lines of the one log in `directory`."""
    (path,) = directory.iterdir()
    return path.read_text().splitlines()


class Syslog:
    """A /dev/log."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(10)
        self.socket.bind(str(path))

    def receive(self) -> str:
        """Return the next message."""
        return self.socket.recv(1 << 16).decode()


# Places


def test_file_is_private_and_named_like_the_references(tmp_path: Path) -> None:
    """--log-directory creates the directory (0700), and in it one file (0600) with the time."""
    directory = tmp_path / "a" / "logs"
    configure_log(LogConfig(directory=str(directory)))
    structlog.get_logger("mountpoint.fuse.operations").warning("read failed", errno="EIO")
    (path,) = directory.iterdir()
    pattern = r"mountpoint-s3-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ\.[A-Za-z0-9]{6}\.log"
    assert re.fullmatch(pattern, path.name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    pattern = (
        r"timestamp=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z level=warning "
        r'logger=mountpoint\.fuse\.operations event="read failed" errno=EIO\n'
    )
    assert re.fullmatch(pattern, path.read_text())


def test_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """If the log directory is a file, mounting fails with a message and a hint."""
    (tmp_path / "file").touch()
    with pytest.raises(MountError) as caught:
        configure_log(LogConfig(directory=str(tmp_path / "file")))
    assert str(tmp_path / "file") in caught.value.what
    assert "--log-directory" in caught.value.hint


def test_background_writes_to_syslog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message has the priority of its level, the ident mount-s3, and the line."""
    monkeypatch.setattr("mountpoint.log.setup.SYSLOG_SOCKET", str(tmp_path / "log"))
    syslog = Syslog(tmp_path / "log")
    configure_log(LogConfig())
    log = structlog.get_logger("mountpoint.read")
    log.info("not shown")
    log.warning("slow", size_bytes=5)
    log.error("bad")
    head = rf"mount-s3\[{os.getpid()}\]: timestamp=\S+ level="
    assert re.fullmatch(
        rf"<12>{head}warning logger=mountpoint.read event=slow size_bytes=5", syslog.receive()
    )
    assert re.match(rf"<11>{head}error ", syslog.receive())
    syslog.socket.close()


def test_syslog_that_comes_late_or_again_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without /dev/log nothing happens; when it appears, or is replaced, lines arrive."""
    path = tmp_path / "log"
    monkeypatch.setattr("mountpoint.log.setup.SYSLOG_SOCKET", str(path))
    configure_log(LogConfig())
    log = structlog.get_logger("mountpoint.read")
    log.error("lost")
    for event in ("first", "second"):
        syslog = Syslog(path)
        log.error(event)
        assert f"event={event}" in syslog.receive()
        syslog.socket.close()
        path.unlink()


def test_foreground_writes_to_stderr_without_colours(stderr: Stderr) -> None:
    """On a stream that is no terminal a line has no escape sequences."""
    configure_log(LogConfig(foreground=True))
    structlog.get_logger("mountpoint.mount.run").warning("two words", path="/a b", code=None)
    pattern = r'\d\d:\d\d:\d\d WARNING  mountpoint\.mount\.run: two words path="/a b"\n'
    assert re.fullmatch(pattern, stderr.getvalue())


def test_foreground_with_directory_writes_both(tmp_path: Path, stderr: Stderr) -> None:
    """With a log directory the foreground writes a file as well."""
    configure_log(LogConfig(foreground=True, directory=str(tmp_path)))
    structlog.get_logger("mountpoint.mount.run").warning("both")
    assert "both" in stderr.getvalue()
    assert len(log_lines(tmp_path)) == 1


def test_closed_stderr_does_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that cannot be written is lost, without an error."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_log(LogConfig(foreground=True))
    structlog.get_logger("mountpoint.mount.run").error("written")
    assert "written" in stream.getvalue()
    stream.close()
    structlog.get_logger("mountpoint.mount.run").error("lost")


def test_no_log(stderr: Stderr) -> None:
    """--no-log silences everything, including critical lines and other libraries."""
    configure_log(LogConfig(foreground=True, no_log=True))
    structlog.get_logger("mountpoint.mount.run").critical("hidden")
    logging.getLogger("botocore.auth").critical("hidden")
    assert stderr.getvalue() == ""


# Levels


@pytest.mark.parametrize(
    ("config", "name", "level"),
    [
        (LogConfig(), "mountpoint.read", logging.WARNING),
        (LogConfig(), "awscrt.http", OFF),
        (LogConfig(debug=True), "mountpoint.read", logging.DEBUG),
        (LogConfig(debug=True), "awscrt.http", OFF),
        (LogConfig(debug_crt=True), "awscrt.http", logging.DEBUG),
        (LogConfig(debug_crt=True), "mountpoint.mount.run", logging.WARNING),
        (LogConfig(debug=True, filter="error"), "mountpoint.mount.run", logging.ERROR),
        (LogConfig(metrics=True), "mountpoint.metrics", logging.INFO),
        (LogConfig(metrics=True), "mountpoint.mount.run", logging.WARNING),
        (LogConfig(metrics=True, debug=True), "mountpoint.metrics", logging.INFO),
        (LogConfig(metrics=True, filter="warn"), "mountpoint.metrics", logging.WARNING),
        (LogConfig(filter="trace,awscrt=warn"), "awscrt", logging.WARNING),
        (LogConfig(filter="trace,awscrt=warn"), "mountpoint.listing.tree", TRACE),
        (LogConfig(filter="mountpoint.read=debug"), "mountpoint.read.stream", logging.DEBUG),
        (LogConfig(filter="mountpoint.read=debug"), "mountpoint.readings", logging.WARNING),
        (LogConfig(filter="mountpoint.read=debug"), "awscrt", OFF),
        (LogConfig(filter=" INFO , awscrt = Off ,"), "mountpoint", logging.INFO),
        (LogConfig(filter="mountpoint_s3::fs=debug"), "mountpoint.fs", logging.WARNING),
        (LogConfig(no_log=True, filter="trace"), "mountpoint", OFF),
    ],
)
def test_levels(config: LogConfig, name: str, level: int) -> None:
    """The longest target decides, then the bare level; MOUNTPOINT_LOG overrides the options."""
    assert effective_filter(config).level(name) == level


@pytest.mark.parametrize(
    ("config", "level"),
    [
        (LogConfig(), None),
        (LogConfig(debug=True), None),
        (LogConfig(debug_crt=True), logging.DEBUG),
        (LogConfig(filter="error"), logging.ERROR),
        (LogConfig(filter="awscrt=off,awscrt.io.dns=trace"), TRACE),
        (LogConfig(debug_crt=True, filter="warn,awscrt=off"), None),
        (LogConfig(no_log=True), None),
    ],
)
def test_crt_log_level(config: LogConfig, level: int | None) -> None:
    """The CRT logs at the most verbose level that any of its targets needs, or not at all."""
    assert crt_log_level(config) == level


def test_method_below_the_level_does_nothing(stderr: Stderr) -> None:
    """A call below the level does not evaluate its arguments."""

    class Untouchable:
        def __str__(self) -> str:
            raise AssertionError("rendered")

    configure_log(LogConfig(foreground=True, filter="warn,mountpoint.read=debug"))
    quiet, loud = (structlog.get_logger(f"mountpoint.{name}") for name in ("fs.inodes", "read.x"))
    quiet.debug("hidden", value=Untouchable())
    quiet.info("hidden %s", Untouchable())
    loud.debug("shown")
    quiet.warning("shown")
    assert [line.split()[1] for line in stderr.getvalue().splitlines()] == ["DEBUG", "WARNING"]
    assert not quiet.is_enabled_for(logging.INFO)


def test_bound_values_keep_the_level(stderr: Stderr) -> None:
    """A logger from `bind` has the level of its origin."""
    configure_log(LogConfig(foreground=True, filter="off,mountpoint.a=info"))
    structlog.get_logger("mountpoint.a").bind(inode=7).info("shown")
    structlog.get_logger("mountpoint.b").bind(inode=7).critical("hidden")
    (line,) = stderr.getvalue().splitlines()
    assert line.endswith("mountpoint.a: shown inode=7")


def test_other_libraries_are_asked_for_by_name(stderr: Stderr) -> None:
    """--debug leaves botocore at warnings, unless the filter names it."""
    configure_log(LogConfig(foreground=True, debug=True))
    logging.getLogger("botocore.hooks").debug("hidden")
    logging.getLogger("botocore.hooks").warning("shown %d", 1)
    configure_log(LogConfig(foreground=True, filter="botocore=debug"))
    logging.getLogger("botocore.hooks").debug("shown %d", 2)
    logging.getLogger("awscrt.http").error("hidden")
    (bridge,) = bridges()
    bridge.handle(logging.LogRecord("botocore", 10, "", 0, "%d does not fit", ("x",), None))
    shown = [line.split(": ", 1)[1] for line in stderr.getvalue().splitlines()]
    assert shown == ["shown 1", "shown 2", "%d does not fit"]


# Form


def test_a_newline_in_a_value_does_not_make_a_line(tmp_path: Path) -> None:
    """Control characters in a key are escaped: an event is one line."""
    configure_log(LogConfig(directory=str(tmp_path)))
    key = b'a\nlevel=critical event="forged"\x1b[2J\xff\\'
    structlog.get_logger("mountpoint.mount.run").warning(
        "bad\nkey", path=key, other="b\u202ec\u2028"
    )
    (line,) = log_lines(tmp_path)
    assert line.endswith(
        r' event="bad\nkey" path="a\nlevel=critical event=\"forged\"\x1b[2J\xff\\"'
        r' other="b\u202ec\u2028"'
    )


def test_exception_is_one_line_in_files_and_a_traceback_for_people(
    tmp_path: Path, stderr: Stderr
) -> None:
    """The traceback is the last field in a file, and indented lines on stderr."""
    configure_log(LogConfig(foreground=True, directory=str(tmp_path)))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        structlog.get_logger("mountpoint.mount.run").exception("failed", path="/a")
    (line,) = log_lines(tmp_path)
    assert r"path=/a exception=\"Traceback".replace(r"\"", '"') in line
    assert line.endswith(r"ValueError: two\nlines" + '"')
    first, *others = stderr.getvalue().splitlines()
    assert first.endswith("mountpoint.mount.run: failed path=/a")
    assert others[0] == "    Traceback (most recent call last):"
    assert all(other.startswith("    ") for other in others)


def test_colours() -> None:
    """On a terminal only the level has a colour."""
    event = {"timestamp": 0.0, "level": "error", "logger": "m", "event": "x", "a": "\x1b[0m"}
    line = console_line(event, colours=True)
    assert "\x1b[31mERROR   \x1b[0m m: x" in line
    assert line.count("\x1b") == 2


def test_uncaught_exceptions_are_logged(tmp_path: Path) -> None:
    """Uncaught exceptions of threads, ignored exceptions and warnings are logged."""
    configure_log(LogConfig(directory=str(tmp_path)))

    def die() -> None:
        raise RuntimeError("thread trouble")

    thread = threading.Thread(target=die, name="worker-1")
    thread.start()
    thread.join()

    class Dying:
        def __del__(self) -> None:
            raise RuntimeError("callback trouble")

    Dying()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # pytest has put its own in between
        logging.captureWarnings(True)
        warnings.warn("old method", DeprecationWarning, stacklevel=1)
    died, ignored, warned = log_lines(tmp_path)
    assert (
        'level=critical logger=mountpoint.log.setup event="a thread died" thread=worker-1' in died
    )
    assert "thread trouble" in died
    assert "level=error" in ignored
    assert "callback trouble" in ignored
    assert "logger=py.warnings" in warned
    assert "old method" in warned


# Credentials


@pytest.mark.parametrize(
    "text",
    [
        f"aws_secret_access_key = {SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET} AWS_SESSION_TOKEN={TOKEN}",
        f'{{"AccessKeyId": "ASIAIOSFODNN7EXAMPLE", "SecretAccessKey": "{SECRET}"}}',
        f'"SessionToken" : "{TOKEN}"',
        f"<SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>{TOKEN}</SessionToken>",
        f"x-amz-security-token:{TOKEN}\nx-amz-date:20250101T000000Z",
        f"{{'X-Amz-Security-Token': b'{TOKEN}'}}",
        f"[('x-amz-security-token', '{TOKEN}')]",
        f"GET /a?X-Amz-Security-Token={TOKEN.replace('/', '%2F')}&X-Amz-Signature={SIGNATURE}",
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20250101/us-east-1/s3/"
        f"aws4_request, SignedHeaders=host;x-amz-date, Signature={SIGNATURE}",
        f"Authorization: AWS AKIAIOSFODNN7EXAMPLE:{SECRET}",
        f"'Authorization': 'Bearer {SECRET}'",
        f"SignatureProvided>{SIGNATURE}<",
        f"Signature:\n{SIGNATURE}",
        f"session token is {TOKEN}",
        f"X-aws-ec2-metadata-token: {SECRET}==",
        f"x-amz-s3session-token: {TOKEN}",
        f"refreshToken={SECRET}&clientSecret={SECRET}",
        f"Credentials(access_key='AKIAIOSFODNN7EXAMPLE', secret_key='{SECRET}')",
    ],
)
@pytest.mark.parametrize("logger", ["mountpoint.mount.run", "botocore.auth", "awscrt.auth"])
def test_credentials_never_appear(tmp_path: Path, stderr: Stderr, text: str, logger: str) -> None:
    """Credentials in an event, a field or an exception are masked."""
    config = LogConfig(
        directory=str(tmp_path),
        foreground=True,
        filter="debug,awscrt=trace,botocore=debug,mountpoint=debug",
    )
    configure_log(config)
    structlog.get_logger(logger).debug(text, field=text, raw=text.encode())
    logging.getLogger(logger).debug("sent %s", text)
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger(logger).exception("failed")
    written = "\n".join(log_lines(tmp_path)) + stderr.getvalue()
    assert len(log_lines(tmp_path)) == 3
    secrets = (SECRET, SIGNATURE, TOKEN, TOKEN.replace("/", "%2F"))
    for secret in secrets:
        for start in range(0, len(secret) - 12, 4):
            assert secret[start : start + 12] not in written
    assert not re.search("(AKIA|ASIA)[A-Z0-9]{8}", written)
    assert "[redacted]" in written


def test_no_standard_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a standard error the program logs elsewhere, and crash reports are dropped."""
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr("mountpoint.log.setup.SYSLOG_SOCKET", str(tmp_path / "none"))
    assert configure_log(LogConfig(foreground=True)).crashes is None
    structlog.get_logger("mountpoint").warning("nobody hears it")


def test_log_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint names the directory or journalctl, or says how to get a log."""
    assert "/var/x" in log_location(LogConfig(directory="/var/x"))
    assert log_location(LogConfig(foreground=True)) == ""
    assert "--no-log" in log_location(LogConfig(no_log=True))
    monkeypatch.setattr("mountpoint.log.setup.SYSLOG_SOCKET", str(tmp_path))
    assert "journalctl" in log_location(LogConfig())
    monkeypatch.setattr("mountpoint.log.setup.SYSLOG_SOCKET", str(tmp_path / "none"))
    assert "--log-directory" in log_location(LogConfig())
