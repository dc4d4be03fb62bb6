"""What the service manager has kept of a mount, for the next `mount-s3` to go on with.

systemd passes the descriptors that a keeper has left (`keeper.ServiceManager`) as sd_listen_fds(3)
says. Until somebody serves that mount, each access to it waits: so this comes before all that looks
at the mount point. A mount whose settings do not fit any more is unmounted.
"""

import contextlib
import json
import os
from collections.abc import MutableMapping
from typing import Any, NamedTuple

from mountpoint.config import Config
from mountpoint.mount import dead_mount
from mountpoint.mount.kept import keeper

#: The first descriptor that a service manager passes.
FIRST = 3

#: The format of all that is kept. A keeper of another one cannot go on with the mount.
FORMAT = 1

ALL_KINDS = (*keeper.KINDS, "state")


def terms(config: Config) -> dict[str, Any]:
    """Return what stays as it is while a mount lives, by the name of its option.

    The kernel has been told of it, or what is open depends on it. All else may change.
    """
    mount = config.mount
    return {
        "format": FORMAT,
        "--keep-alive": mount.keep_alive,
        "--foreground": config.log.foreground,
        "BUCKET": config.bucket.name,
        "--prefix": os.fsdecode(config.bucket.prefix),
        "--endpoint-url": config.bucket.endpoint_url,
        "DIRECTORY": mount.directory,
        "--read-only": mount.read_only,
        "--allow-root": mount.allow_root,
        "--allow-other": mount.allow_other,
        "--fsname": mount.fsname,
        "-o": list(mount.kernel_options),
        "--inode32": config.filesystem.inode32,
        "--attributes": config.change.keeps_attributes,
        "--staged-writes": config.change.staging_directory,
    }


class Stored(NamedTuple):
    """Descriptors by name, and the same by kind."""

    names: dict[str, int]
    kinds: dict[str, int]

    def is_mounted(self) -> bool:
        """Whether the kernel still has the mount."""
        device = self.kinds.get("device")
        return device is not None and keeper.is_mounted(device)

    def why_not(self, config: Config) -> str | None:
        """Return why a mount with these settings cannot go on with this one; None if it can."""
        wanted, found = terms(config), self._terms()
        if set(ALL_KINDS) - set(self.kinds) or found.get("format") != FORMAT:
            return "another version of mount-s3 has left it"
        changed = [name for name, value in wanted.items() if found.get(name) != value]
        if changed:
            return f"other settings now: {', '.join(changed)}"
        if not dead_mount.mount_at(config.mount.directory):
            return f"it is not mounted at {config.mount.directory} any more"
        return None

    def discard(self, manager: keeper.ServiceManager) -> None:
        """Unmount it, and have the service manager forget it. Raises MountError."""
        directory = self._terms().get("DIRECTORY") if self.is_mounted() else None
        for name, descriptor in self.names.items():
            manager.drop(name)
            os.close(descriptor)
        if isinstance(directory, str) and dead_mount.mount_at(directory):
            dead_mount.unmount(directory)

    def _terms(self) -> dict[str, Any]:
        with contextlib.suppress(KeyError, ValueError, TypeError, OSError):
            found = json.loads(os.pread(self.kinds["state"], keeper.MAX_STATE_BYTES, 0))["terms"]
            return found if isinstance(found, dict) else {}
        return {}


def take(environ: MutableMapping[str, str]) -> Stored | None:
    """Return what a service manager has passed to this process of a mount; None: nothing.

    Programs that we start do not inherit it, or the variables about it.
    """
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    words = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return None
    names: dict[str, int] = {}
    for descriptor, name in zip(range(FIRST, FIRST + int(count)), words, strict=False):
        kind, _, number = name.rpartition("-")
        if kind in ALL_KINDS and number.isdecimal():
            os.set_inheritable(descriptor, False)
            names[name] = descriptor
    # Of two of a kind the keeper was about to drop the first one.
    newest = sorted(names, key=lambda name: int(name.rpartition("-")[2]))
    kinds = {keeper.kind_of(name): names[name] for name in newest}
    return Stored(names, kinds) if names else None


def go_on(config: Config, manager: keeper.ServiceManager, stored: Stored) -> dict[str, int] | str:
    """Return the descriptors to go on with, by name; or why there is another mount instead.

    Then the one before is unmounted. "": that was done already. Raises MountError.
    """
    reason = stored.why_not(config) if stored.is_mounted() else ""
    if reason is not None:
        stored.discard(manager)
        return reason
    chosen = set(stored.kinds.values())
    for name, descriptor in stored.names.items():
        if descriptor not in chosen:
            manager.drop(name)
            os.close(descriptor)
    return {name: each for name, each in stored.names.items() if each in chosen}
