"""All exports of a mount: start and stop OTLP, Prometheus, log lines and health checks.

    with Exports(config, meters, stopping) as exports:
        ...
        exports.serving(client.check_credentials, answers.levels)

Each export has one thread, started after the fork. They do not wait for each other, and the file
system does not wait for them. Faults (a missing library, an address in use) are reported before
the mount.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

import structlog

from mountpoint.config import Config
from mountpoint.errors import MountError
from mountpoint.metrics.export import lines
from mountpoint.metrics.export.families import Family, families, own_families
from mountpoint.metrics.export.health import Health
from mountpoint.metrics.recorder import Meters
from mountpoint.system.memory import resident_bytes

log = structlog.get_logger(__name__)

#: Seconds that the end of a mount may take for the last export.
END_S = 5.0

#: Returns the values that `families.LEVELS` describes.
Levels = Callable[[], Mapping[str, int]]


class Exports:
    """The configured exports of one mount, while it lives. Raises MountError."""

    def __init__(self, config: Config, meters: Meters, stopping: threading.Event) -> None:
        # dependencies
        self._meters = meters
        self._health = Health(meters, stopping, config.mount.directory, config.read.timeout_s)
        # mutable
        self._served = False
        self._levels: Levels = dict
        self._ends = contextlib.ExitStack()
        try:
            self._start(config)
        except BaseException:
            self._ends.close()
            raise

    def serving(self, check_credentials: Callable[[], None], levels: Levels) -> None:
        """Record that the mount serves requests; exports may now call these functions."""
        self._served = True
        self._levels = levels
        self._health.serving(check_credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ends.close()

    def _start(self, config: Config) -> None:
        metrics = config.metrics
        if metrics.prometheus is not None:
            with _extra("--prometheus", "prometheus"):
                from mountpoint.metrics.export.prometheus import Prometheus
            server = Prometheus(*metrics.prometheus_address, self._all, self._health)
            self._ends.callback(server.close)
        if metrics.otlp_endpoint is not None:
            with _extra("--otlp-endpoint", "otlp"):
                from mountpoint.metrics.export.otlp import Otlp
            otlp = Otlp(metrics.otlp_endpoint, self._families, os.environ)
            sending = _RepeatingThread(
                "otlp", metrics.otlp_interval_s, otlp.export, self._at_end(otlp.export_last)
            )
            self._ends.callback(sending.join)
            self._ends.callback(otlp.interrupt)
            self._ends.callback(sending.stop)
        if config.log.metrics:
            writer = lines.Lines(self._families)
            writing = _RepeatingThread(
                "log-metrics", lines.INTERVAL_S, writer.write, self._at_end(writer.write)
            )
            self._ends.callback(writing.join)
            self._ends.callback(writing.stop)

    def _families(self) -> list[Family]:
        return families(self._meters.snapshot(), resident_bytes())

    def _all(self) -> list[Family]:
        snapshot = self._meters.snapshot()
        counters = self._meters.counters.snapshot()
        own = own_families(counters, snapshot["programs"], self._levels())
        return families(snapshot, resident_bytes()) + own

    def _at_end(self, action: Callable[[], None]) -> Callable[[], None]:
        """Return a function that calls `action` only if the mount was served."""
        return lambda: action() if self._served else None


class _RepeatingThread:
    """Calls `action` at an interval, and `last` at the end, in its own thread."""

    def __init__(
        self, name: str, interval_s: float, action: Callable[[], None], last: Callable[[], None]
    ) -> None:
        # constants
        self._interval_s = interval_s
        self._action = action
        self._last = last
        # mutable, thread-safe
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end soon."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until it has ended, for END_S at most."""
        self._thread.join(END_S)
        if self._thread.is_alive():
            log.warning("the last metrics were not sent in time", thread=self._thread.name)

    def _run(self) -> None:
        at_s = time.monotonic()
        while True:
            # Do not catch up on the intervals that a long action missed.
            at_s = max(at_s + self._interval_s, time.monotonic())
            if self._stopping.wait(at_s - time.monotonic()):
                self._last()
                return
            self._action()


@contextlib.contextmanager
def _extra(option: str, name: str) -> Iterator[None]:
    """Name the package extra that provides a missing import."""
    try:
        yield
    except ImportError as error:
        raise MountError(
            f"{option} needs a library that is not installed: {error}",
            f"pip install 'mount-s3[{name}]'",
        ) from error
