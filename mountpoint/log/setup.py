"""Set up logging: outputs and levels; every finished line is redacted.

`mount.run` calls `configure_log` once, in the process that mounts. All other modules do
`log = structlog.get_logger(__name__)`, then `log.warning("read failed", path=..., errno=...)`.

* **Output**: in the foreground stderr. In the background syslog, or nothing if no daemon listens on
  /dev/log. With `--log-directory` a file. A fault in the log never disturbs the file system: the
  line is lost.
* **Levels**: warnings and worse; `--debug` for all our loggers; `MOUNTPOINT_LOG` overrides both
  (see `parse_filter`). Each structlog logger gets structlog's class for its level, in which a
  method below the level is an empty function. Lines from the standard library's loggers (botocore,
  urllib3, awscrt) come through a handler at the root.
* **Format**: one line per event, `key=value`, with every control character escaped (`format`): a
  key may contain a newline.
* **Secrets**: never logged. `format.Redactor` processes every finished line.

This module does not import awscrt: `crt_log_level` tells `s3.crt` how to start the CRT's own log.
"""

import contextlib
import itertools
import logging
import os
import random
import socket
import string
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from mountpoint.config import LogConfig
from mountpoint.errors import MountError
from mountpoint.log.filter import OFF, Filter, parse_filter
from mountpoint.log.format import Redactor, console_line, field_line

#: The logger of metrics: the package that counts.
METRICS = "mountpoint.metrics"
SYSLOG_SOCKET = "/dev/log"
#: LOG_USER, the default of AWS's mount-s3 (RFC 5424, 6.2.1: 1 << 3).
SYSLOG_FACILITY = 8
#: rsyslog cuts messages at 8 KiB by default ($MaxMessageSize); journald takes more.
SYSLOG_MAX_BYTES = 8 << 10
#: A slow logging daemon must not delay a read for longer.
SYSLOG_TIMEOUT_S = 0.5
#: Each line of a burst must not wait that long: after one timeout, the next lines are lost.
SYSLOG_PAUSE_S = 10.0
#: Log lines kept in memory: a megabyte at most.
RECENT_LINES = 1000
RECENT_LINE_CHARS = 1000
SYSLOG_SEVERITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


class Sink(Protocol):
    """An output for finished events. Never raises."""

    def write(self, event: EventDict) -> None:
        """Write one event."""


class Log(NamedTuple):
    """The result of `configure_log`: the lines kept in memory, and a file for crash reports.

    `crashes` is a descriptor; None if the only output is syslog.
    """

    recent: "RecentLines"
    crashes: int | None


def configure_log(config: LogConfig) -> Log:
    """Set up logging for this process. Raises MountError if an output cannot be opened."""
    chosen = effective_filter(config)
    file = None if config.directory is None else _create_file(config.directory)
    redact = Redactor.from_environment(os.environ)
    recent = RecentLines(redact)
    sinks = [*_sinks(config, file, redact), recent]
    structlog.configure(
        processors=[_add_time, structlog.processors.format_exc_info, _last],
        wrapper_class=cast(type[FilteringBoundLogger], _logger_class(chosen)),
        logger_factory=lambda name="mountpoint": _Target(name, sinks),
        cache_logger_on_first_use=True,
    )
    _route_standard_library(chosen, sinks)
    standard_error = 2 if config.foreground and sys.stderr is not None else None
    return Log(recent, standard_error if file is None else file)


def effective_filter(config: LogConfig) -> Filter:
    """Return the filter: `--no-log` first, then MOUNTPOINT_LOG, then the other options."""
    if config.no_log:
        return Filter(default=OFF)
    if config.filter:
        return parse_filter(config.filter)
    targets = {"awscrt": logging.DEBUG if config.debug_crt else OFF}
    if config.metrics:
        targets[METRICS] = logging.INFO
    return Filter(default=logging.DEBUG if config.debug else logging.WARNING, targets=targets)


def crt_log_level(config: LogConfig) -> int | None:
    """Return the level for the CRT's own log, or None for no log.

    It is a level of `logging`, or `TRACE` (5).
    """
    level = effective_filter(config).most_verbose("awscrt")
    return level if level < OFF else None


def log_location(config: LogConfig) -> str:
    """Return a sentence that tells a user where the log is, or "" in the foreground."""
    if config.no_log:
        return "to get a log, omit --no-log"
    if config.directory is not None:
        return f"see the newest log in {config.directory}"
    if config.foreground:
        return ""
    if os.path.exists(SYSLOG_SOCKET):
        return "see the log: journalctl -e SYSLOG_IDENTIFIER=mount-s3, or --log-directory DIR"
    return "this machine has no syslog; for a log use --log-directory DIR or --foreground"


def is_in_memory_only(config: LogConfig) -> bool:
    """Whether a log is wanted, but no output survives the process."""
    elsewhere = config.no_log or config.foreground or config.directory is not None
    return not elsewhere and not os.path.exists(SYSLOG_SOCKET)


# Levels


def _logger_class(chosen: Filter) -> Callable[..., FilteringBoundLogger]:
    """Return the function with which structlog makes a logger: one class per target's level."""

    def make(logger: Any, processors: Any, context: Any) -> FilteringBoundLogger:
        # structlog has no class above CRITICAL; `_Target` drops the lines of a target that is off.
        level = chosen.level(logger.name)
        logger.enabled = level < OFF
        steps = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
        step = next((step for step in steps if level <= step), logging.CRITICAL)
        made = structlog.make_filtering_bound_logger(step)
        return cast(Callable[..., FilteringBoundLogger], made)(
            logger, processors=processors, context=context
        )

    return make


def _route_standard_library(chosen: Filter, sinks: list[Sink]) -> None:
    """Send the standard library's records to the same outputs, if the filter selects them."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(_Bridge(sinks))
    # Other libraries log at low levels only if named: a bare "debug" means our own loggers.
    root.setLevel(max(chosen.default, logging.WARNING))
    # Users see the CRT as part of this program, so it follows the bare level.
    for target, level in {"awscrt": chosen.level("awscrt"), **chosen.targets}.items():
        logging.getLogger(target).setLevel(level)
    logging.captureWarnings(True)
    threading.excepthook = _thread_died
    sys.unraisablehook = _unraisable


def _thread_died(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_type is not SystemExit:
        log = structlog.get_logger(__name__)
        name = hook.thread.name if hook.thread else ""
        log.critical("a thread died", thread=name, exc_info=hook.exc_value)


def _unraisable(hook: "sys.UnraisableHookArgs") -> None:
    """Log an exception that cannot be caught, such as in a callback from the CRT."""
    log = structlog.get_logger(__name__)
    log.error("exception ignored", source=repr(hook.object), exc_info=hook.exc_value)


class _Target:
    """The output of structlog's loggers of one name. Its methods are named after the levels."""

    def __init__(self, name: str, sinks: list[Sink]) -> None:
        self.name = name
        self.enabled = True
        self._sinks = sinks

    def write(self, event: EventDict) -> None:
        if self.enabled:
            for sink in self._sinks:
                sink.write({"logger": self.name, **event})

    debug = info = warning = error = critical = write


class _Bridge(logging.Handler):
    """Passes the standard library's records to the sinks."""

    def __init__(self, sinks: list[Sink]) -> None:
        super().__init__()
        self._sinks = sinks

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # a record whose arguments do not fit: another library's mistake
            text = str(record.msg)
        event: EventDict = {
            "timestamp": record.created,
            "level": _level_name(record.levelno),
            "logger": record.name,
            "event": text,
            "exc_info": record.exc_info,
        }
        event = structlog.processors.format_exc_info(self, record.levelname, event)
        for sink in self._sinks:
            sink.write(event)


def _level_name(level: int) -> str:
    for name in ("critical", "error", "warning", "info"):
        if level >= getattr(logging, name.upper()):
            return name
    return "debug"


def _add_time(logger: Any, method: str, event: EventDict) -> EventDict:
    event["timestamp"] = time.time()
    event["level"] = method
    return event


def _last(logger: Any, method: str, event: EventDict) -> tuple[tuple[EventDict], Mapping[str, Any]]:
    """Pass the event unchanged; each sink renders it."""
    return (event,), {}


# Sinks


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person may be watching. None means that the caller closed the stream."""
    return stream is not None and stream.isatty()


def wants_colours(stream: TextIO | None) -> bool:
    """Whether the terminal's user wants colours: https://no-color.org."""
    return is_terminal(stream) and "NO_COLOR" not in os.environ


def _sinks(config: LogConfig, file: int | None, redact: Redactor) -> list[Sink]:
    if config.no_log:
        return []
    sinks: list[Sink] = []
    if file is not None:
        sinks.append(_File(file, redact))
    if config.foreground and sys.stderr is not None:  # it may be closed
        sinks.append(_Console(sys.stderr, redact))
    return sinks or [_Syslog(SYSLOG_SOCKET, redact)]


def _create_file(directory: str) -> int:
    """Create the log file, readable by its owner only; return its descriptor."""
    stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    letters = "".join(random.choices(string.ascii_letters + string.digits, k=6))
    path = os.path.join(directory, f"mountpoint-s3-{stamp}.{letters}.log")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    except OSError as error:
        raise cannot_write(directory, error.strerror) from None


def cannot_write(directory: str, reason: str | None) -> MountError:
    """Return the error for a directory that cannot hold a log."""
    return MountError(
        f"cannot write a log in '{directory}': {reason}",
        "use --log-directory with a writable directory, or omit it to use syslog",
    )


class _File:
    """A file: one write per line, which O_APPEND keeps together."""

    def __init__(self, descriptor: int, redact: Redactor) -> None:
        self._descriptor = descriptor
        self._redact = redact

    def write(self, event: EventDict) -> None:
        line = self._redact(field_line(event)) + "\n"
        with contextlib.suppress(OSError):  # disk full: the file system continues
            os.write(self._descriptor, line.encode())


class RecentLines:
    """The last lines, for `mount-s3ctl log`. Thread-safe."""

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact
        self._lines: deque[tuple[int, str]] = deque(maxlen=RECENT_LINES)
        self._numbers = itertools.count(1)

    def write(self, event: EventDict) -> None:
        line = self._redact(field_line(event))[:RECENT_LINE_CHARS]
        self._lines.append((next(self._numbers), line))

    def after(self, number: int) -> list[tuple[int, str]]:
        """Return the stored lines after a number, with their numbers; 0 returns all."""
        return [each for each in list(self._lines) if each[0] > number]


class _Console:
    """Standard error, a terminal or not."""

    def __init__(self, stream: TextIO, redact: Redactor) -> None:
        self._stream = stream
        self._redact = redact
        self._colours = wants_colours(stream)

    def write(self, event: EventDict) -> None:
        text = self._redact(console_line(event, colours=self._colours)) + "\n"
        with contextlib.suppress(OSError, ValueError):  # a closed terminal or pipe
            self._stream.write(text)
            self._stream.flush()


class _Syslog:
    """The local syslog daemon; the format is "<priority>ident[pid]: text".

    Reconnects after the daemon is restarted, or if it starts after this process.
    """

    def __init__(self, path: str, redact: Redactor) -> None:
        self._path = path
        self._redact = redact
        self._ident = f"mount-s3[{os.getpid()}]"
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._socket: socket.socket | None = None
        self._pause_until = 0.0

    def write(self, event: EventDict) -> None:
        priority = SYSLOG_FACILITY | SYSLOG_SEVERITIES[event["level"]]
        line = f"<{priority}>{self._ident}: {self._redact(field_line(event))}"
        data = line.encode()[:SYSLOG_MAX_BYTES]
        with self._lock:
            if time.monotonic() < self._pause_until:
                return
            for _ in range(2):
                try:
                    self._connected().send(data)
                    return
                except TimeoutError:
                    self._pause_until = time.monotonic() + SYSLOG_PAUSE_S
                    return
                except OSError:
                    self._disconnect()

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(SYSLOG_TIMEOUT_S)
            self._socket.connect(self._path)
        return self._socket

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
