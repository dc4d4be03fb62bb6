"""The worker's end of the socket to its `keeper`, and what it shares with it."""

import contextlib
import json
import os
import pickle
import socket
import time
from collections.abc import Callable
from typing import Any, NoReturn

import structlog

from mountpoint.config import Config
from mountpoint.errors import MountError
from mountpoint.fs.session.log import SessionLog, new_log
from mountpoint.fuse import binding
from mountpoint.log.format import printable_lines
from mountpoint.mount import daemon
from mountpoint.mount.kept import keeper

log = structlog.get_logger(__name__)

MAX_CONFIG_BYTES = 1 << 20
#: How long a worker of another version may take to reach S3, in seconds.
PREPARE_S = 40.0
#: How long the keeper may take to end this process, in seconds. Requests wait meanwhile.
HAND_OVER_S = 2.0


class Link:
    """The socket to the keeper, and what both hold. `argument`: see `keeper.worker_argument`.

    `takes_over`: there is a mount to go on with. `unserved`: nobody serves it at present. Without
    `background` the mount is to end with its keeper, unless the service manager keeps it.
    """

    def __init__(self, argument: str) -> None:
        settings: dict[str, Any] = json.loads(argument)
        for descriptor in (settings["link"], settings["config"]):
            os.set_inheritable(descriptor, False)
        # constants
        self.config: Config = pickle.loads(os.pread(settings["config"], MAX_CONFIG_BYTES, 0))
        self.takes_over: bool = settings["takes_over"]
        self.unserved: bool = settings["unserved"]
        self.background: bool = settings["background"]
        self._socket = socket.socket(fileno=settings["link"])
        # mutable
        self._turn: Turn | None = None
        self._told = False

    def take_turn(self) -> "Turn":
        """Report that this worker is prepared, and wait until it is to serve."""
        self._socket.send(keeper.PREPARED)
        flags = socket.MSG_CMSG_CLOEXEC
        data, kept, _, _ = socket.recv_fds(self._socket, keeper.MAX_MESSAGE_BYTES, 3, flags)
        if data[:1] != keeper.GO:
            raise MountError("the keeper has ended", "mount again")
        self._turn = Turn(kept, self._publish, **json.loads(data[1:]))
        return self._turn

    def ready(self) -> None:
        """See daemon.Status."""
        assert self._turn is not None
        if self.background:
            daemon.detach()
        self._told = True
        with contextlib.suppress(BrokenPipeError):  # the keeper was killed: go on without it
            socket.send_fds(self._socket, [keeper.READY], self._turn.kept())

    def failed(self, error: MountError) -> None:
        """See daemon.Status."""
        if self._told:
            return
        text = printable_lines(str(error)).encode("utf-8", "backslashreplace")
        with contextlib.suppress(BrokenPipeError):
            self._socket.send(keeper.FAILED + text[: keeper.MAX_MESSAGE_BYTES - 1])

    def prepare_upgrade(self) -> None:
        """Have the keeper prepare the worker of the installed version. Raises MountError."""
        self._drop_answers()
        self._socket.settimeout(PREPARE_S)
        try:
            self._socket.send(keeper.UPGRADE)
            answer = self._socket.recv(keeper.MAX_MESSAGE_BYTES)
        except TimeoutError:
            self.cancel_upgrade()
            raise MountError(f"the other version was not ready after {PREPARE_S:g} s") from None
        except OSError as error:
            raise MountError(f"the keeper does not answer: {error}") from error
        finally:
            self._socket.settimeout(None)
        if answer != keeper.PREPARED:
            reason = answer[1:].decode("utf-8", "replace") or "the keeper has ended"
            raise MountError(f"the other version cannot mount: {reason}")

    def cancel_upgrade(self) -> None:
        """Have the keeper end the worker that it has prepared."""
        with contextlib.suppress(OSError):
            self._socket.send(keeper.CANCEL)

    def hand_over(self) -> NoReturn:
        """Have the keeper kill this process, and let the prepared worker serve.

        Raises MountError if the keeper does not do it.
        """
        with contextlib.suppress(OSError):
            self._socket.send(keeper.HAND_OVER)
            time.sleep(HAND_OVER_S)
        raise MountError("the keeper does not hand the mount over", "unmount, and mount again")

    def _drop_answers(self) -> None:
        """Drop answers that came after nobody waited for them any more."""
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(keeper.MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT):
                pass

    def _publish(self, file: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(self._socket, [keeper.LOG], [file])


class Turn:
    """A worker's time to serve: what it goes on with, and keeps for the next one.

    `kept` is what the worker before has kept (`kept`), or only /dev/fuse of a mount that another
    process has made, or nothing.
    `died` is the pid of the worker before, or 0; `upgraded`: it has handed the mount over.
    `restarts` is the number of workers that died otherwise. `log` keeps what the next one needs.
    """

    def __init__(
        self,
        kept: list[int],
        publish: Callable[[int], None],
        *,
        restarts: int,
        died: int,
        upgraded: bool,
    ) -> None:
        # constants
        self.restarts = restarts
        self.died = died
        self.upgraded = upgraded
        self._device = kept[0] if kept else None
        self._resumes = len(kept) > 1
        if self._resumes:
            _, self._requests, log_file = kept
        else:
            self._requests = os.memfd_create("mount-s3 requests", os.MFD_CLOEXEC)
            os.truncate(self._requests, binding.KEPT_BYTES)
            log_file = new_log()
        self.log = SessionLog(log_file, publish)

    def prepare(self, *, writes: bool) -> None:
        """Make the next mount one that goes on after this process, or the one that goes on.

        `writes`: so do files that are being written. Raises MountError if it cannot go on.
        """
        binding.keep(self._requests, resume=self._resumes, writes=writes)
        if self._device is not None:
            binding.take(self._device)

    def kept(self) -> list[int]:
        """Return what the keeper is to keep. Valid once the kernel's INIT is known."""
        if binding.is_kept():
            return [binding.device(), self._requests, self.log.file]
        log.warning("the mount will not go on if this process dies: the kernel is too old")
        return []
