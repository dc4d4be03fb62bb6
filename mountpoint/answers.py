"""What a running mount answers to `mount-s3ctl`, over its control socket (`control`).

One method per command: a request in, an object for JSON out. Nothing secret is known here.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from mountpoint import __version__, fuse, logs
from mountpoint.budget import Budget
from mountpoint.config import Config
from mountpoint.control import Command
from mountpoint.errors import MountError
from mountpoint.filesystem import FileSystem
from mountpoint.memory import resident_bytes
from mountpoint.meters import Meters
from mountpoint.s3.endpoint import Endpoint


class Answers:
    """The commands of one mount. Thread-safe."""

    def __init__(
        self,
        config: Config,
        endpoint: Endpoint,
        filesystem: FileSystem,
        budget: Budget,
        meters: Meters,
        recent: logs.Recent,
    ) -> None:
        # dependencies
        self._config = config
        self._endpoint = endpoint
        self._filesystem = filesystem
        self._budget = budget
        self._meters = meters
        self._recent = recent
        # constants
        self._began_s = time.monotonic()

    def commands(self) -> dict[str, Command]:
        """Return the methods that answer, by the commands' names."""
        return {
            "status": self.status,
            "stats": self.stats,
            "log": self.log,
            "refresh": self.refresh,
        }

    def status(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        """What is mounted where, since when, and what it holds."""
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
            "metadata_ttl_s": self._config.filesystem.ttl_s,
            "negative_metadata_ttl_s": self._config.filesystem.negative_ttl_s,
            "uptime_s": time.monotonic() - self._began_s,
            "rss_bytes": resident_bytes(),
            "memory_held_bytes": self._budget.held_bytes,
            "memory_limit_bytes": self._budget.limit_bytes,
            "open_files": self._filesystem.open_files(),
            "being_written": [each._asdict() for each in self._filesystem.being_written()],
        }

    def stats(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """All numbers since the mount began, and its status."""
        return {
            "at_s": time.monotonic(),
            "status": self.status(request),
            "counters": self._meters.counters.snapshot(),
            "meters": self._meters.snapshot(),
        }

    def log(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The last lines of the log, of those after the number `after`."""
        after = request.get("after", 0)
        if not isinstance(after, int):
            raise MountError("'after' is the number of a line")
        return {"lines": self._recent.after(after), "where": logs.where(self._config.log)}

    def refresh(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Forget what is known of `path`, below the mount, and of all below it."""
        path = request.get("path")
        if not isinstance(path, str):
            raise MountError("'path' is a path below the mount")
        names = self._filesystem.refresh(os.fsencode(path.strip("/")))
        for directory, name in names:
            fuse.forget_name(directory, name)
        return {"forgotten": len(names)}
