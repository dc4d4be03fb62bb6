"""Find the mounts of this user, and the mount that contains a path."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mountpoint.errors import MountError
from mountpoint.mount.control import SUFFIX, ask, socket_directory
from mountpoint.system.kernel import TYPE, FuseMount, fuse_mounts
from mountpoint.system.mounts import real_path


class MountEnded(MountError):
    """The process of the mount has ended, before or during the command."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount that answers: its socket and its status (`ControlCommands.status`)."""

    socket: Path
    status: dict[str, Any]

    @property
    def directory(self) -> str:
        """The mount point."""
        return str(self.status["directory"])

    def ask(self, command: str, /, **request: Any) -> dict[str, Any]:
        """Send it a command. Raises MountEnded, and MountError if the command fails."""
        try:
            return ask(self.socket, command, **request)
        except (ConnectionError, FileNotFoundError):
            raise MountEnded(f"the mount at '{self.directory}' has ended") from None
        except (OSError, ValueError) as error:
            raise MountError(f"the mount at '{self.directory}' does not answer: {error}") from error


def answering(environ: Mapping[str, str]) -> list[Mount]:
    """Return the mounts of this user that answer, sorted by directory.

    Removes the sockets of killed mounts.
    """
    found = []
    for path in socket_directory(environ).glob(f"*{SUFFIX}"):
        try:
            found.append(Mount(path, ask(path, "status")))
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                path.unlink()
        except (OSError, ValueError, MountError):
            pass  # it is ending or hangs: `silent` returns it
    return sorted(found, key=lambda mount: mount.directory)


def silent(mounts: list[Mount]) -> list[FuseMount]:
    """Return the mounts of this user that are not in `mounts`: they do not answer."""
    known = {mount.directory for mount in mounts}
    return [
        each
        for each in fuse_mounts(TYPE)
        if each.directory not in known and each.uid == os.geteuid()
    ]


def at(path: str, mounts: list[Mount]) -> tuple[Mount, str]:
    """Return the mount that contains `path`, and the path below it. Raises MountError."""
    found = real_path(path)
    for mount in sorted(mounts, key=lambda each: -len(each.directory)):
        if found == mount.directory or found.startswith(mount.directory.rstrip("/") + "/"):
            return mount, found[len(mount.directory) :].strip("/")
    for each in silent(mounts):
        if found == each.directory:
            raise MountError(
                f"the mount at '{found}' does not answer",
                f"if its process is dead, remove the mount: mount-s3ctl unmount {path}",
            )
    directories = ", ".join(f"'{mount.directory}'" for mount in mounts)
    hint = f"there are {directories}" if mounts else "mount-s3ctl status lists the mounts"
    raise MountError(f"you have no mount at '{path}'", hint)
