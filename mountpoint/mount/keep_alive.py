"""The worker's end of `--keep-alive` (`keeper`): what it shares with the keeper."""

import contextlib
import json
import os
import pickle
import socket
from typing import Any

import structlog

from mountpoint.config import Config
from mountpoint.errors import MountError
from mountpoint.fs.session.log import SessionLog, new_log
from mountpoint.fuse import binding
from mountpoint.log.format import printable_lines
from mountpoint.mount import daemon, keeper

log = structlog.get_logger(__name__)


class Link:
    """The socket to the keeper, and what both hold. `argument` is that of the worker's command.

    `restarts` is the number of workers before this one, `died` the pid of the last of them, or 0.
    `log` keeps what the next one needs.
    """

    def __init__(self, argument: str) -> None:
        settings: dict[str, Any] = json.loads(argument)
        kept: list[int] = settings["kept"]
        for descriptor in (settings["link"], settings["config"], *kept):
            os.set_inheritable(descriptor, False)
        self.config: Config = pickle.loads(os.pread(settings["config"], 1 << 20, 0))
        self.restarts: int = settings["restarts"]
        self.died: int = settings["died"]
        self._background: bool = settings["background"]
        self._told = False
        self._socket = socket.socket(fileno=settings["link"])
        self._device: int | None = None
        if kept:
            self._device, self._requests, log = kept
        else:
            self._requests = os.memfd_create("mount-s3 requests", os.MFD_CLOEXEC)
            os.truncate(self._requests, binding.KEPT_BYTES)
            log = new_log()
        self.log = SessionLog(log, self._publish)

    @property
    def takes_over(self) -> bool:
        """Whether there is a mount to go on with."""
        return self._device is not None

    def prepare(self) -> None:
        """Make the next mount one that goes on after this process, or the one that goes on.

        Raises MountError if it cannot go on.
        """
        binding.keep(self._requests, resume=self.takes_over)
        if self._device is not None:
            binding.take(self._device)

    def ready(self) -> None:
        """See daemon.Status."""
        if self._background:
            daemon.detach()
        self._told = True
        descriptors = [binding.device(), self._requests, self.log.file]
        if not binding.is_kept():
            log.warning("the mount will not go on if this process dies: the kernel is too old")
            descriptors = []
        with contextlib.suppress(BrokenPipeError):  # the keeper was killed: go on without it
            socket.send_fds(self._socket, [keeper.READY], descriptors)

    def failed(self, error: MountError) -> None:
        """See daemon.Status."""
        if self._told or self.takes_over:
            return
        text = printable_lines(str(error)).encode("utf-8", "backslashreplace")
        with contextlib.suppress(BrokenPipeError):
            self._socket.send(keeper.FAILED + text[: keeper.MAX_MESSAGE_BYTES - 1])

    def _publish(self, file: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(self._socket, [keeper.LOG], [file])
