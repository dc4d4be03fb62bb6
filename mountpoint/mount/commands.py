"""The commands of `mount-s3ctl` that a running mount answers over its control socket (`control`).

One method per command: it gets a request and returns an object for JSON. docs/mount-s3ctl.md
documents the field names, and users' scripts rely on them. This module knows no secrets.
"""

import os
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from mountpoint import __version__
from mountpoint.config import Config
from mountpoint.errors import MountError
from mountpoint.fs.filesystem import FileSystem
from mountpoint.fuse import binding
from mountpoint.log.setup import RecentLines, log_location
from mountpoint.metrics.recorder import Meters
from mountpoint.mount.cached_files import CachedFiles
from mountpoint.mount.control import Command
from mountpoint.mount.kept.upgrade import Upgrade
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.system.memory import resident_bytes
from mountpoint.transfer.memory_budget import Budget

#: Rates are averages over this many seconds: programs read in bursts.
RATE_S = 10


class ControlCommands:
    """The commands of one mount. Thread-safe. `sweep` must be called every second.

    `restarts`: how often the mount's process was restarted; None if nothing would restart it.
    """

    def __init__(
        self,
        config: Config,
        endpoint: Endpoint,
        filesystem: FileSystem,
        budget: Budget,
        meters: Meters,
        recent: RecentLines,
        *,
        data_plane: str,
        cached_files: CachedFiles,
        restarts: int | None = None,
        upgrade: Upgrade | None = None,
    ) -> None:
        # dependencies
        self._config = config
        self._endpoint = endpoint
        self._filesystem = filesystem
        self._budget = budget
        self._meters = meters
        self._recent = recent
        self._cached_files = cached_files
        self._upgrade = upgrade
        # constants
        self._data_plane = data_plane
        self._restarts = restarts
        self._began_s = time.monotonic()
        # mutable; each change is one step of the interpreter: times, with the totals at that time
        self._samples = deque([(self._began_s, self._totals())], maxlen=RATE_S + 1)

    def sweep(self) -> None:
        """Take a sample for the rates."""
        self._samples.append((time.monotonic(), self._totals()))

    def commands(self) -> dict[str, Command]:
        """Return the methods by the names of the commands that they answer."""
        return {
            "status": self.status,
            "stats": self.stats,
            "log": self.log,
            "refresh": self.refresh,
            "cached": self.cached,
            "upgrade": self.upgrade,
        }

    def status(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is mounted, where, since when, and what the mount holds."""
        bucket = self._config.bucket
        return {
            "version": __version__,
            "pid": os.getpid(),
            "bucket": bucket.name,
            "prefix": bucket.prefix.decode("utf-8", "surrogateescape"),
            "endpoint": self._endpoint.host,
            "region": self._endpoint.region,
            "is_aws": self._endpoint.aws,
            "directory": self._config.mount.directory,
            "read_only": self._config.mount.read_only,
            "options": _write_options(self._config),
            "metadata_ttl_s": self._config.filesystem.ttl_s,
            "negative_metadata_ttl_s": self._config.filesystem.negative_ttl_s,
            "keep_alive": self._restarts is not None,
            "restarts": self._restarts or 0,
            "uptime_s": time.monotonic() - self._began_s,
            "rss_bytes": resident_bytes(),
            "memory_held_bytes": self._budget.held_bytes,
            "memory_limit_bytes": self._budget.limit_bytes,
            "open_files": self._filesystem.open_files(),
            "being_written": [each._asdict() for each in self._filesystem.being_written()],
            "rates": self._rates(),
            "data_plane": self._data_plane,
            "cache_directory": self._config.cache.directory,
            "cache_limit_bytes": self._config.cache.max_bytes,
            "cache_bucket": self._config.cache.bucket,
            "trouble": self._meters.trouble.lasting(0.0),
            "log": log_location(self._config.log),
            "log_directory": self._config.log.directory,
        }

    def stats(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return all counters since the mount began, and its status."""
        return {
            "at_s": time.monotonic(),
            "status": self.status(request),
            "counters": self._meters.counters.snapshot(),
            "meters": self._meters.snapshot()
            | {
                "reads_in_lane": binding.reads_in_lane(),
                "opens_in_lane": binding.opens_in_lane(),
            },
        }

    def log(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the last lines of the log that are newer than number `after`."""
        after = request.get("after", 0)
        if not isinstance(after, int):
            raise MountError("'after' is the number of a line")
        return {"lines": self._recent.after(after), "where": log_location(self._config.log)}

    def refresh(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Forget what is cached of `path`, a path below the mount, and of everything below it."""
        path = request.get("path")
        if not isinstance(path, str):
            raise MountError("'path' is a path below the mount")
        names = self._filesystem.refresh(os.fsencode(path.strip("/")))
        for directory, name in names:
            binding.forget_name(directory, name)
        return {"forgotten": len(names)}

    def cached(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the data caches lack of files; at least of the first of `paths`."""
        paths = request.get("paths")
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise MountError("'paths' are paths below the mount")
        return self._cached_files.answer([os.fsencode(path) for path in paths])

    def upgrade(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        """Hand the mount over to the installed version; there is no answer if that succeeds."""
        if self._upgrade is None:
            raise MountError(
                "the mount has no keeper, which could start another version",
                "unmount, and mount again (without --no-keep-alive or --auto-unmount)",
            )
        self._upgrade.run()

    def levels(self) -> dict[str, int]:
        """Return the present levels, for metrics (`metrics.export.families.LEVELS`)."""
        writing = self._filesystem.being_written()
        return {
            "open_files": self._filesystem.open_files(),
            "files_being_written": len(writing),
            "upload_pending": sum(each.pending_bytes for each in writing),
            "data_memory": self._budget.held_bytes,
            "data_memory_limit": self._budget.limit_bytes,
            "busy_threads": self._meters.threads.busy,
        }

    def _rates(self) -> dict[str, float]:
        began_s, before = self._samples[0]
        over_s = max(time.monotonic() - began_s, 1e-3)
        rates = {
            f"{name}_per_s": (total - before[name]) / over_s
            for name, total in self._totals().items()
        }
        return {"over_s": over_s, **rates}

    def _totals(self) -> dict[str, int]:
        counters, requests = self._meters.counters.snapshot(), list(self._meters.requests.values())
        return {
            "read_bytes": self._meters.read_bytes.total,
            "written_bytes": self._meters.written_bytes.total,
            "fetched_bytes": counters["bytes_fetched"],
            "sent_bytes": counters["bytes_sent"],
            "requests": sum(each.timer.over + each.timer.under_way for each in requests),
            "failed_requests": sum(each.timer.failures for each in requests),
        }


def _write_options(config: Config) -> list[str]:
    """Return the options that allow changes besides new files; [] for a read-only mount."""
    change = config.change
    if config.mount.read_only:
        return []
    switches = (
        "allow_overwrite",
        "allow_delete",
        "allow_rename",
        "allow_append",
        "incremental_upload",
        "keep_directories",
    )
    found = [f"--{name.replace('_', '-')}" for name in switches if getattr(change, name)]
    if change.attributes != "refuse":
        found.append(f"--attributes {change.attributes}")
    if change.staging_directory is not None:
        found.append(f"--staged-writes {change.staging_directory}")
    return found
