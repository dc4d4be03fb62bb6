"""Check of the read throughput: read 64 MiB of one object as a mount does.

A thread reads like the kernel, 1 MiB at a time, from a stream (`read.stream`) that fetches ahead
with parallel ranged GETs. The measuring thread only waits, so it can stop in time and on Ctrl-C.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from mountpoint.checks.checklist import Result, ok, skipped, warning
from mountpoint.checks.subject import Subject, known
from mountpoint.errors import MountError, OperationError
from mountpoint.read.stream import ReadStream
from mountpoint.read.streams import Streams
from mountpoint.s3.retry import RetryPolicy

READ_BYTES = 64 << 20
#: The size of the kernel's reads.
STEP_BYTES = 1 << 20
MAX_S = 20.0
#: Seconds that a reader may take to stop.
END_S = 2.0


class Measurement(NamedTuple):
    """The bytes read and the seconds taken; `error` is the reason for an early end."""

    size_bytes: int
    seconds: float
    error: Exception | None = None


def throughput(subject: Subject) -> Result:
    """Measure with the first object that is large enough."""
    objects, client, config = known(subject.objects), known(subject.client), subject.config
    if objects.large is None:
        return skipped(f"no object of {READ_BYTES >> 20} MiB was found")
    retry_policy = RetryPolicy(
        try_s=config.client.try_timeout_s,
        total_s=MAX_S,
        stopping=subject.stopping,
        max_tries=config.client.max_tries,
        counters=subject.meters.counters,
    )
    stream = Streams(client, config.read, retry_policy, subject.meters.counters).stream(
        objects.large
    )
    with subject.progress(READ_BYTES) as advance:
        measured = measure(stream, READ_BYTES, MAX_S, advance)
    key = objects.large.key.decode("utf-8", "surrogateescape")
    if measured.error is not None:
        hint = measured.error.hint if isinstance(measured.error, OperationError) else ""
        raise MountError(f"'{key}' cannot be read: {measured.error}", hint)
    came_mib, rate = measured.size_bytes >> 20, measured.size_bytes / 1e6 / measured.seconds
    gbps = config.client.link_gbps
    said = (
        f"{rate:.0f} MB/s: {came_mib} MiB of '{key}' in {measured.seconds:.1f} s; "
        f"--maximum-throughput-gbps {gbps:g} aims at {gbps * 125:.0f} MB/s"
    )
    judged = ok if measured.size_bytes == READ_BYTES else _too_slow
    return judged(
        said,
        key=key,
        mb_per_s=round(rate, 1),
        size_bytes=measured.size_bytes,
        seconds=round(measured.seconds, 2),
        aim_mb_per_s=round(gbps * 125, 2),
    )


def _too_slow(said: str, **details: str | int | float) -> Result:
    hint = "--part-size 1048576 makes smaller requests; a bucket in another region is slow"
    return warning(said, hint, **details)


def measure(
    stream: ReadStream, size_bytes: int, max_s: float, advance: Callable[[int], None]
) -> Measurement:
    """Read up to `size_bytes` from `stream`, for at most `max_s` seconds, and close it."""
    arrived: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()

    def read() -> None:
        try:
            stream.open()
            for offset in range(0, size_bytes, STEP_BYTES):
                with memoryview(stream.read(offset, min(STEP_BYTES, size_bytes - offset))) as view:
                    arrived.put(len(view))
        except Exception as error:
            arrived.put(error)

    reader = threading.Thread(target=read, name="throughput", daemon=True)
    begun_s = time.monotonic()
    done_bytes = 0
    reader.start()
    try:
        while done_bytes < size_bytes:
            left_s = begun_s + max_s - time.monotonic()
            try:
                item = arrived.get(timeout=max(left_s, 0.0))
            except queue.Empty:
                break
            if isinstance(item, Exception):
                return Measurement(done_bytes, time.monotonic() - begun_s, item)
            done_bytes += item
            advance(item)
        return Measurement(done_bytes, time.monotonic() - begun_s)
    finally:
        stream.close()
        reader.join(END_S)
