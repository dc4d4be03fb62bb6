"""The control socket of a mount: `mount-s3ctl` talks to it over a unix socket of the mount's owner.

Each mount listens on one socket in `socket_directory`, which other users cannot enter. A client
must also be the owner or root (SO_PEERCRED, unix(7)). A connection carries one line of JSON each
way: an object whose "command" is the name of a command, and an object back, which has "error" if
the command failed. Connections are served one after another, each within `CLIENT_S`.

Not known here: what the commands do (`commands`).
"""

import contextlib
import json
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

from mountpoint.errors import MountError
from mountpoint.system.private import make_private
from mountpoint.upload.pending_journal import default_directory

log = structlog.get_logger(__name__)

SUFFIX = ".sock"
#: How long a client may take to send its request, and to receive the answer, in seconds.
CLIENT_S = 5.0
#: How long a mount may take to answer, in seconds: forgetting a million names takes some.
ANSWER_S = 60.0
MAX_REQUEST_BYTES = 64 << 10
BACKLOG = 16

#: Answers a request.
Command = Callable[[Mapping[str, Any]], dict[str, Any]]


def socket_directory(environ: Mapping[str, str]) -> Path:
    """Return the directory of this user's sockets: root's in /run, others' beside their journals.

    XDG_RUNTIME_DIR is not used: it is removed when the user logs out, while the mount stays.
    """
    return Path("/run/mount-s3") if os.geteuid() == 0 else default_directory(environ) / "control"


class Control:
    """The socket of this process. If it cannot be created, that is logged; it is no error."""

    def __init__(self, directory: Path, commands: Mapping[str, Command]) -> None:
        # dependencies
        self._commands = commands
        # constants
        self._path = directory / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self._listener: socket.socket | None = None
        try:
            self._listener = _listen(self._path)
        except OSError as error:
            reason = error.strerror or str(error)
            log.warning(
                "no control socket: mount-s3ctl cannot reach this mount",
                path=str(self._path),
                reason=reason,
            )
            return
        threading.Thread(target=self._serve, name="control", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends `accept`
        self._listener.close()

    def _serve(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:  # the client has gone
                connection.settimeout(CLIENT_S)
                if _peer_uid(connection) in (0, os.geteuid()):
                    answer = answer_to(self._commands, _line(connection, MAX_REQUEST_BYTES))
                    connection.sendall(json.dumps(answer).encode() + b"\n")


def answer_to(commands: Mapping[str, Command], line: bytes) -> dict[str, Any]:
    """Run the command in a request; return its answer, or an error."""
    try:
        request = json.loads(line)
        command = commands[request["command"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"error": f"the command must be one of {', '.join(commands)}"}
    try:
        return command(request)
    except Exception as error:
        if not isinstance(error, MountError):
            log.error("a command failed: a bug", request=request, exc_info=error)
        return {"error": str(error)}


def ask(path: Path, command: str, /, **request: Any) -> dict[str, Any]:
    """Send a command to the mount that listens at `path`; return its answer.

    Raises ConnectionRefusedError if no mount listens any more, other OSErrors, and MountError if
    the mount answers with an error.
    """
    with _reachable(path) as address, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CLIENT_S)
        connection.connect(address)
        if _peer_uid(connection) not in (0, os.geteuid()):
            raise PermissionError(0, "another user listens there")
        connection.settimeout(ANSWER_S)
        connection.sendall(json.dumps({**request, "command": command}).encode() + b"\n")
        line = _line(connection, None)
    if not line:
        raise ConnectionResetError("the mount has ended")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise MountError(answer["error"])
    return answer


def _listen(path: Path) -> socket.socket:
    """Return a listening socket that only its owner can open. Raises OSError."""
    make_private(path.parent)
    listener = socket.socket(socket.AF_UNIX)
    # It gets its name once it listens: until then it would be taken for that of a dead mount.
    draft = path.with_suffix(".new")
    try:
        with _reachable(draft) as address:
            listener.bind(address)
        draft.chmod(0o600)
        listener.listen(BACKLOG)
        draft.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Yield a short enough address of a socket: unix(7) allows 107 bytes."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _peer_uid(connection: socket.socket) -> int:
    credentials = struct.Struct("3i")  # struct ucred: pid, uid, gid
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return int(credentials.unpack(found)[1])


def _line(connection: socket.socket, max_bytes: int | None) -> bytes:
    """Return the first line received, or its beginning if the connection ends earlier."""
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = connection.recv(1 << 16)
        received += chunk
        if not chunk or (max_bytes is not None and len(received) > max_bytes):
            break
    return bytes(received)
