"""Start the keeper of a mount, and its first worker.

The first worker is a copy of this process, which has the interpreter and the modules already: a
mount with a keeper is ready as fast as one without. It has to be a child of the keeper, which
collects its exit code. So a process forks it, and then becomes the keeper (exec).
"""

import json
import os
import pickle
import signal
import socket
import sys
from typing import Any, NoReturn

from mountpoint.config import Config
from mountpoint.errors import MountError
from mountpoint.mount import daemon, preflight
from mountpoint.mount.kept import keeper, stored
from mountpoint.system import sd_notify

#: Python's arguments for the keeper: without site-packages and the environment's settings.
KEEPER = ("-I", "-S", keeper.__file__)
#: And for the workers that it starts: a module of the package, never one in the working directory.
WORKER = ("-P", "-m", "mountpoint.mount.kept.worker")


def start(config: Config, status: int) -> int:
    """Start the keeper of a mount in the background; return its pid.

    It reports on the descriptor `status`, as `daemon.wait_for` says. Call it while signals are
    blocked.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGINT, signal.SIGHUP):
            # An ignored signal concerns a terminal, which the keeper leaves.
            signal.signal(number, signal.SIG_DFL)
        _become(config, {}, status=status, done="")
    except MountError as error:
        os.write(status, daemon.FAILED + str(error).encode())
    finally:
        os._exit(1)


def become(config: Config, done: str, kept: dict[str, int]) -> NoReturn:
    """Become the keeper of a mount in the foreground; it prints `done` when it is mounted.

    `kept`: what the service manager has kept of a mount to go on with, by name (`stored`); {}:
    there is none. Raises OSError, and MountError if the keeper does not start.
    """
    _become(config, kept, status=None, done=done)


def _become(config: Config, kept: dict[str, int], *, status: int | None, done: str) -> NoReturn:
    daemon.keep_paths()
    # A signal before the keeper handles them would leave the worker behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, keeper.SIGNALS)
    directory, device = config.mount.directory, config.mount.descriptor
    config_file = _file("config", pickle.dumps(config))
    state = {keeper.kind_of(name): descriptor for name, descriptor in kept.items()}.get("state")
    if state is None:
        state = _file("state", json.dumps({"terms": stored.terms(config)}).encode())
    pid, link = _start_worker(config_file, takes_over=bool(kept), background=status is not None)
    settings: dict[str, Any] = {
        "worker": [sys.executable, *WORKER, directory],
        "first": {"pid": pid, "socket": link},
        "config": config_file,
        "directory": directory,
        "status": status,
        "done": done,
        "state": state,
        "stored": kept,
        "device": device,
    }
    for descriptor in (config_file, state, link, status, device, *kept.values()):
        if descriptor is not None:
            os.set_inheritable(descriptor, True)
    command = [sys.executable, *KEEPER, json.dumps(settings), directory]
    try:
        os.execv(command[0], command)
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise MountError(
            f"{command[0]} could not be started to keep the mount: {error.strerror}",
            "mount with --no-keep-alive, which needs no second process",
        ) from error


def _start_worker(config: int, *, takes_over: bool, background: bool) -> tuple[int, int]:
    """Start the first worker; return its pid, and the keeper's end of the socket to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours.detach()
    try:
        ours.close()
        keeper.close_others(keep=(theirs.fileno(), config))
        os.environ.pop(sd_notify.VARIABLE, None)  # the keeper notifies
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            from mountpoint.mount.kept import worker
        except ImportError as error:
            theirs.send(keeper.FAILED + str(preflight.missing_library(error)).encode())
            raise
        worker.main(
            keeper.worker_argument(
                theirs.detach(),
                config,
                takes_over=takes_over,
                unserved=takes_over,
                background=background,
            )
        )
    finally:
        os._exit(1)


def _file(name: str, content: bytes) -> int:
    """Return the descriptor of a file in memory that the keeper inherits."""
    file = os.memfd_create(f"mount-s3 {name}", os.MFD_CLOEXEC)
    os.write(file, content)
    return file
