"""The state of a run of the checks: the configuration, and the findings so far."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

from mountpoint.config import Config
from mountpoint.errors import MountError
from mountpoint.metrics.recorder import Meters
from mountpoint.s3.aws.credentials import Credentials
from mountpoint.s3.aws.endpoint import Endpoint, RegionChoice
from mountpoint.s3.aws.proxy import Proxy
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.connect import TOTAL_S, TRY_S
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.network_probe import Address
from mountpoint.s3.retry import RetryPolicy

T = TypeVar("T")

#: Called with the number of bytes that arrived since the last call.
Advance = Callable[[int], None]
Progress = Callable[[int], AbstractContextManager[Advance]]


@contextlib.contextmanager
def no_progress(_total_bytes: int) -> Iterator[Advance]:
    """Show no progress."""
    yield lambda _: None


@dataclass(slots=True)
class Objects:
    """The objects that a bounded listing found.

    `readable` is the first object with bytes that can be read, `large` the first that is large
    enough to measure; None if there is none.
    """

    seen: int = 0
    archived: int = 0
    more: bool = False
    largest_bytes: int = 0
    readable: ObjectInfo | None = None
    large: ObjectInfo | None = None


@dataclass(slots=True)
class Subject:
    """One run of the checks.

    `config` holds the options, until the check `configuration` adds the variables and the AWS
    configuration. `progress` shows the share of bytes that has arrived.
    """

    # dependencies
    environ: Mapping[str, str]
    progress: Progress
    # mutable, used by the one checking thread; each is None until a check sets it
    config: Config
    endpoint_source: str = ""
    credentials: Credentials | None = None
    region: RegionChoice | None = None
    endpoint: Endpoint | None = None
    proxy: Proxy | None = None
    addresses: list[Address] = field(default_factory=list)
    connection: socket.socket | None = None
    client: CrtClient | None = None
    objects: Objects | None = None
    # thread-safe
    meters: Meters = field(default_factory=Meters)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def directory(self) -> str | None:
        """The mount point, if given."""
        return self.config.mount.directory or None

    def retry_policy(self) -> RetryPolicy:
        """Return the time limits of one request to S3."""
        return RetryPolicy(
            try_s=TRY_S, total_s=TOTAL_S, stopping=self.stopping, counters=self.meters.counters
        )

    def close(self) -> None:
        """End everything in progress."""
        self.stopping.set()
        if self.connection is not None:
            self.connection.close()
        if self.client is not None:
            self.client.close()
        if self.credentials is not None:
            self.credentials.close()


def known(value: T | None) -> T:
    """Return a finding of an earlier check; the caller's `needs` ensure that there is one."""
    assert value is not None
    return value


def within(max_s: float, what: str, hint: str, work: Callable[[], T]) -> T:
    """Return the result of `work`; raise its error, or MountError if it takes too long.

    For work that may wait forever (a hung mount, a credential_process), or that Ctrl-C does not
    interrupt (name resolution). Its thread ends with the process.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="check", daemon=True).start()
    try:
        return future.result(max_s)
    except TimeoutError:
        if future.done():  # `work` raised it
            raise
        raise MountError(f"{what} did not answer within {max_s:.0f} seconds", hint) from None
