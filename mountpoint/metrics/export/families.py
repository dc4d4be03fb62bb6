"""All exported metrics: names, kinds, units and labels. Pure.

Names, kinds, units and labels in `families` are those of AWS's mount-s3 (doc/METRICS.md there), so
that the same dashboards work. `own_families` holds the metrics that only this program has. The
formats (OTLP, Prometheus text, log lines) are in other modules.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mountpoint.metrics.counters import CounterName
from mountpoint.metrics.recorder import difference

Kind = Literal["counter", "gauge", "histogram"]
#: UCUM units: bytes, microseconds, a plain number; an annotation is no unit. https://ucum.org/ucum
Unit = Literal["By", "us", "1", "{file}", "{thread}"]
#: Label values, in the order of the family's label names.
Labels = tuple[str, ...]

#: The `http_status` of a request without an answer, as in AWS's mount-s3.
NO_ANSWER = "-1"
#: The numbers of an empty histogram.
NOTHING: Mapping[str, Any] = {
    "count": 0, "total": 0, "least": 0, "most": 0, "zeros": 0, "buckets": []
}  # fmt: skip

#: The description of each counter in `metrics.Counters`.
COUNTERS: Mapping[CounterName, str] = {
    "gets": "GetObject requests, retries included",
    "heads": "HeadObject requests",
    "lists": "Listings: ListObjectsV2, ListMultipartUploads",
    "puts": "PutObject requests",
    "uploads": "Multipart uploads started",
    "parts": "Parts of multipart uploads sent",
    "completes": "Multipart uploads completed",
    "aborts": "Multipart uploads abandoned",
    "deletes": "DeleteObject requests",
    "copies": "Server-side copies: CopyObject, UploadPartCopy",
    "renames": "RenameObject requests (directory buckets)",
    "bytes_asked": "Bytes requested by GETs",
    "bytes_fetched": "Bytes received in bodies of GETs",
    "bytes_read": "Bytes read by the kernel, counted at the next request or at close",
    "reads_waited": "Reads that had to wait for S3",
    "bytes_prefetched": "Bytes of files fetched before they were opened",
    "bytes_prefetched_in_vain": "Bytes of files fetched in advance but never opened",
    "bytes_sent": "Bytes sent in bodies of PUTs and parts, retries included",
    "retries": "Requests that were retried",
    "hedges": "Second requests for answers that took too long",
    "hedges_won": "Second requests that were answered first",
    "checksums_verified": "Bodies compared with a checksum",
    "checksums_absent": "Bodies received without a checksum",
    "cache_hits": "Blocks read from the data cache",
    "cache_misses": "Blocks that had left the data cache before they were read",
    "cache_bad_blocks": "Damaged blocks removed from the data cache",
    "cache_evictions": "Blocks removed from the data cache to make room",
    "cache_dropped": "Blocks not kept in the data cache: no room, or the disk is too slow",
    "cache_bytes_read": "Bytes read from the data cache",
    "cache_bytes_written": "Bytes written to the data cache",
    "cache_shared_hits": "Blocks read from the shared cache",
    "cache_shared_misses": "Blocks that the shared cache did not have",
    "cache_shared_bad_blocks": "Damaged blocks found in the shared cache",
    "cache_shared_errors": "Failed requests to the shared cache",
    "cache_shared_dropped": "Blocks not sent to the shared cache: too many waited, or it failed",
    "cache_shared_bytes_read": "Bytes read from the shared cache",
    "cache_shared_bytes_written": "Bytes sent to the shared cache",
}
#: The descriptions of what `Programs` counts per program.
PROGRAMS = {
    "reads": "Reads by a program",
    "bytes_read": "Bytes read by a program",
    "writes": "Writes by a program",
    "bytes_written": "Bytes written by a program",
}
#: The current values from `ControlCommands.levels`, with units.
LEVELS: Mapping[str, tuple[Unit, str]] = {
    "open_files": ("{file}", "Open file handles"),
    "files_being_written": ("{file}", "Files being written"),
    "upload_pending": ("By", "Bytes of these files not yet in S3"),
    "data_memory": ("By", "Data in memory: read ahead or waiting to be written"),
    "data_memory_limit": ("By", "Limit of this data, set by --memory-target"),
    "busy_threads": ("{thread}", "Threads serving an operation"),
}


@dataclass(frozen=True, slots=True)
class Family:
    """One metric, with a value for each combination of labels.

    A histogram's value is a dict as `Histogram.numbers` returns it; other values are whole numbers.
    """

    name: str
    kind: Kind
    unit: Unit
    help: str
    label_names: tuple[str, ...]
    points: Mapping[Labels, Any]

    def labelled(self) -> list[tuple[dict[str, str], Any]]:
        """Return each value with its labels by name."""
        return [
            (dict(zip(self.label_names, labels, strict=True)), value)
            for labels, value in self.points.items()
        ]


def families(snapshot: Mapping[str, Any], resident_bytes: int) -> list[Family]:
    """Return the metrics that AWS's mount-s3 has, too, from a snapshot of `Meters`."""
    operations, requests = snapshot["operations"], snapshot["requests"]
    threads = snapshot["threads"]
    errors: dict[Labels, int] = {
        (name, NO_ANSWER if status == "0" else status): count
        for name, each in requests.items()
        for status, count in each["failures"].items()
    }
    by_operation, by_request = ("fuse_request",), ("s3_request",)
    return [
        Family(
            "fuse.io_size",
            "histogram",
            "By",
            "Bytes of each read or write",
            by_operation,
            {("read",): snapshot["read_bytes"], ("write",): snapshot["written_bytes"]},
        ),
        Family(
            "fuse.request_errors",
            "counter",
            "1",
            "Operations that failed",
            by_operation,
            {(name,): each["failures"] for name, each in operations.items()},
        ),
        Family(
            "fuse.request_latency",
            "histogram",
            "us",
            "Duration of operations",
            by_operation,
            {(name,): each["us"] for name, each in operations.items()},
        ),
        Family(
            "process.memory_usage",
            "gauge",
            "By",
            "Resident memory of the process",
            (),
            {(): resident_bytes},
        ),
        Family(
            "s3.request_count",
            "counter",
            "1",
            "Requests sent, including cancelled ones",
            by_request,
            {(name,): each["begun"] for name, each in requests.items()},
        ),
        Family(
            "s3.request_errors",
            "counter",
            "1",
            "Requests that failed",
            ("s3_request", "http_status"),
            errors,
        ),
        Family(
            "s3.request_first_byte_latency",
            "histogram",
            "us",
            "Time from a request to the first byte of its answer",
            by_request,
            {(name,): each["first_byte_us"] for name, each in requests.items()},
        ),
        Family(
            "s3.request_total_latency",
            "histogram",
            "us",
            "Time from a request to the end of its answer",
            by_request,
            {(name,): each["us"] for name, each in requests.items()},
        ),
        Family(
            "experimental.fuse.idle_threads",
            "histogram",
            "1",
            "Idle threads, each time an operation begins",
            (),
            {(): threads["idle"]},
        ),
        Family(
            "experimental.fuse.total_threads",
            "gauge",
            "1",
            "Threads for operations",
            (),
            {(): threads["total"]},
        ),
    ]


def own_families(
    counters: Mapping[str, int],
    programs: Mapping[str, Mapping[str, Any]],
    levels: Mapping[str, int],
) -> list[Family]:
    """Return the metrics that only this program has: counters, programs and `LEVELS`."""
    found = [
        Family(f"mount_s3.{name}", "counter", "1", help_, (), {(): counters[name]})
        for name, help_ in COUNTERS.items()
    ]
    for name, help_ in PROGRAMS.items():
        points: dict[Labels, int] = {(program,): each[name] for program, each in programs.items()}
        found.append(
            Family(f"mount_s3.program_{name}", "counter", "1", help_, ("program",), points)
        )
    for name, (unit, help_) in LEVELS.items():
        now: dict[Labels, int] = {(): levels[name]} if name in levels else {}
        found.append(Family(f"mount_s3.{name}", "gauge", unit, help_, (), now))
    requests: dict[Labels, int] = {
        (program, request): count
        for program, each in programs.items()
        for request, count in each["requests"].items()
    }
    labels = ("program", "s3_request")
    help_ = "Requests sent for a program"
    return [*found, Family("mount_s3.program_requests", "counter", "1", help_, labels, requests)]


def since(before: Iterable[Family], after: Iterable[Family]) -> list[Family]:
    """Return the growth from `before` to `after`, without unchanged values. Gauges stay."""
    earlier = {family.name: family.points for family in before}
    found = [
        family
        if family.kind == "gauge"
        else replace(family, points=_changed(family, earlier.get(family.name, {})))
        for family in after
    ]
    return [family for family in found if family.points]


def _changed(family: Family, before: Mapping[Labels, Any]) -> dict[Labels, Any]:
    found = {}
    for labels, value in family.points.items():
        if family.kind == "histogram":
            delta: Any = difference(before.get(labels, NOTHING), value)
            some = delta["count"]
        else:
            some = delta = value - before.get(labels, 0)
        if some:
            found[labels] = delta
    return found
