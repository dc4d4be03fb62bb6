"""Uploads over a fake client, with their shared parts."""

import threading
import weakref
from collections.abc import Callable

from mountpoint.config import WriteConfig
from mountpoint.metrics.counters import Counters
from mountpoint.s3.client import Body, Condition, ObjectInfo
from mountpoint.s3.retry import RetryPolicy
from mountpoint.system.spill import Spill, TemporaryFile
from mountpoint.transfer.kept_bodies import Room
from mountpoint.transfer.memory_budget import Budget
from mountpoint.upload.parts import S3_LIMITS, Limits
from mountpoint.upload.upload import Upload
from mountpoint.upload.uploads import Uploads
from tests.unit.fake_client import SAFE_S, FakeClient
from tests.unit.waiting import until

MIB = 1 << 20
PART = 5 * MIB
KEY = b"dir/file"
ABSENT = Condition(absent=True)


class CountedSpill(Spill):
    """Counts its own temporary files that exist."""

    def __init__(self, *directories: str) -> None:
        super().__init__(directories)
        self._files: weakref.WeakSet[TemporaryFile] = weakref.WeakSet()

    @property
    def files(self) -> int:
        """The number of temporary files."""
        return len(self._files)

    def _begin(self) -> TemporaryFile:
        file = super()._begin()
        if self.directory:  # no longer the trial
            self._files.add(file)
        return file


class World:
    """Uploads over a fake client, with their shared parts."""

    def __init__(
        self, client: FakeClient, limit_bytes: int = 16 * PART, limits: Limits = S3_LIMITS
    ) -> None:
        self.client = client
        self.limits = limits
        self.stopping = threading.Event()
        self.counters = Counters()
        self.budget = Budget(limit_bytes)
        self.spill = CountedSpill("/var/tmp")
        self.max_held_bytes = 0
        self.configure()

    def configure(
        self,
        *,
        try_s: float = SAFE_S,
        total_s: float = SAFE_S,
        stall_s: float = SAFE_S,
        part_bytes: int = PART,
        max_tries: int | None = None,
        on_written: Callable[[ObjectInfo, Body], None] | None = None,
        room: Room | None = None,
        **more: object,
    ) -> None:
        """Create the uploads again, with other settings."""
        retry_policy = RetryPolicy(
            try_s=try_s,
            total_s=total_s,
            stopping=self.stopping,
            max_tries=max_tries,
            counters=self.counters,
        )
        config = WriteConfig(part_size_bytes=PART, stall_s=stall_s, **more)  # type: ignore[arg-type]
        object.__setattr__(config, "part_size_bytes", part_bytes)  # tests may go below S3's limit
        self.config = config
        self.retry_policy = retry_policy
        self.uploads = Uploads(
            self.client,
            config,
            self.budget,
            retry_policy,
            self.limits,
            spill=self.spill,
            on_written=on_written,
            room=room,
        )

    def upload(self, condition: Condition = ABSENT) -> Upload:
        return self.uploads.upload(KEY, condition=condition)

    def write(self, upload: Upload, data: bytes, step: int = MIB) -> None:
        """Write all bytes, in steps."""
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            assert upload.write(upload.size_bytes, piece) == len(piece)
            self.max_held_bytes = max(self.max_held_bytes, self.budget.held_bytes)

    def kinds(self) -> list[str]:
        """Return the kinds of all requests so far."""
        return [request.kind for request in self.client.requests]

    def check_over(self) -> None:
        """Check that nothing is left: no requests, memory or parts."""
        self.client.quiet()
        assert self.budget.held_bytes == 0
        assert self.client.uploads == {}
        assert self.uploads._open == set()
        assert not self.uploads._bytes_by_upload
        assert not self.uploads._queue
        assert self.uploads._in_flight_bytes == 0
        # A fake client's thread releases a body shortly after the end.
        until(lambda: self.spill.files == 0)


def data_of(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]
