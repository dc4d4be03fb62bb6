"""Which mounts of this user there are, and which one a path belongs to."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mountpoint.errors import MountError
from mountpoint.mount.control import SUFFIX, ask, socket_directory
from mountpoint.system.kernel import Mounted, fuse_mounts

#: The type that mounts of this program have.
TYPE = "fuse.mount-s3"


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount that answers: its socket, and what it said of itself (`ControlCommands.status`)."""

    socket: Path
    status: dict[str, Any]

    @property
    def directory(self) -> str:
        """Where it is mounted."""
        return str(self.status["directory"])

    def ask(self, command: str, /, **request: Any) -> dict[str, Any]:
        """Ask it. Raises MountError when it has ended, or cannot do it."""
        try:
            return ask(self.socket, command, **request)
        except (ConnectionError, FileNotFoundError):
            raise MountError(f"the mount at '{self.directory}' has ended") from None
        except (OSError, ValueError) as error:
            raise MountError(f"the mount at '{self.directory}' does not answer: {error}") from error


def answering(environ: Mapping[str, str]) -> list[Mount]:
    """Return the mounts of this user that answer, in the order of their directories.

    Sockets of those that were killed are removed.
    """
    found = []
    for path in socket_directory(environ).glob(f"*{SUFFIX}"):
        try:
            found.append(Mount(path, ask(path, "status")))
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink()
        except (OSError, ValueError, MountError):
            pass  # it is about to end, or hangs: `silent` tells
    return sorted(found, key=lambda mount: mount.directory)


def silent(mounts: list[Mount]) -> list[Mounted]:
    """Return what is mounted for this user and is none of `mounts`."""
    known = {mount.directory for mount in mounts}
    return [
        each
        for each in fuse_mounts(TYPE)
        if each.directory not in known and each.uid == os.geteuid()
    ]


def at(path: str, mounts: list[Mount]) -> tuple[Mount, str]:
    """Return the mount that a path is in, and what the path is below it. Raises MountError."""
    place = os.path.realpath(path)
    for mount in sorted(mounts, key=lambda each: -len(each.directory)):
        if place == mount.directory or place.startswith(mount.directory.rstrip("/") + "/"):
            return mount, place[len(mount.directory) :].strip("/")
    for each in silent(mounts):
        if place == each.directory:
            raise MountError(
                f"the mount at '{place}' does not answer",
                f"if its process has died, remove it: mount-s3ctl unmount {path}",
            )
    places = ", ".join(f"'{mount.directory}'" for mount in mounts)
    hint = f"there are {places}" if mounts else "mount-s3ctl status lists those that there are"
    raise MountError(f"nothing of yours is mounted at '{path}'", hint)
