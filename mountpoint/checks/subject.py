"""What is checked, and what is known of it so far."""

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
from mountpoint.s3.probe import Address
from mountpoint.s3.retry import RetryPolicy

T = TypeVar("T")

#: Called with how many bytes have come since it was last called.
Advance = Callable[[int], None]
Progress = Callable[[int], AbstractContextManager[Advance]]


@contextlib.contextmanager
def no_progress(_total_bytes: int) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda _: None


@dataclass(slots=True)
class Objects:
    """What a bounded listing has seen.

    `readable` is the first object that has bytes which can be read, `large` the first with enough
    of them to measure by; None where none was seen.
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

    `config` is what the options say, until the check `configuration` adds what variables and the
    AWS configuration say. `progress` shows how much has come of so many bytes.
    """

    # dependencies
    environ: Mapping[str, str]
    progress: Progress
    # mutable, by the one thread that checks; each is None until a check has found it
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
        """Where it would be mounted, if that is said."""
        return self.config.mount.directory or None

    def retry_policy(self) -> RetryPolicy:
        """Return how long one question to S3 may take."""
        return RetryPolicy(
            try_s=TRY_S, total_s=TOTAL_S, stopping=self.stopping, counters=self.meters.counters
        )

    def close(self) -> None:
        """End everything that is under way."""
        self.stopping.set()
        if self.connection is not None:
            self.connection.close()
        if self.client is not None:
            self.client.close()
        if self.credentials is not None:
            self.credentials.close()


def known(value: T | None) -> T:
    """Return what a check has found that the asking one needs."""
    assert value is not None
    return value


def within(most_s: float, what: str, hint: str, work: Callable[[], T]) -> T:
    """Return what `work` returns; raise what it raises, or MountError if it takes too long.

    For what may wait for good (a mount that is hung, a credential_process), or where Ctrl-C does
    not reach (name resolution). Its thread ends with the process.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="check", daemon=True).start()
    try:
        return future.result(most_s)
    except TimeoutError:
        if future.done():  # it is what `work` has raised
            raise
        raise MountError(f"{what} did not answer within {most_s:.0f} seconds", hint) from None
