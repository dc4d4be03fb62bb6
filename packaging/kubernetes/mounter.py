#!/usr/bin/env python3
"""Mount for a process without privileges: open /dev/fuse, and pass the descriptor on.

  mounter.py serve SOCKET DIRECTORY   privileged: for each program that connects, mount on DIRECTORY
                                      and give it the descriptor; unmount when it has ended
  mounter.py run SOCKET COMMAND ...   not privileged: get the descriptor, and become COMMAND with
                                      its number: mount-s3 --foreground my-bucket /dev/fd/N

`serve` sets the mount's options: `--read-only`, `--user`, `--group`, `--no-allow-other`. The script
needs only Python's standard library. A process that can connect to SOCKET can serve files in
DIRECTORY, so keep SOCKET in a directory that only these two containers share.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import stat
import sys
import time
from pathlib import Path

#: Longest wait of `run` for `serve`, and of `serve` for `run` to take the descriptor.
WAIT_S = 60.0
#: The same value as mount-s3 sets: buffered reads are faster than with the kernel's 128.
READ_AHEAD_KB = 1024

# sys/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME = 1, 2, 4, 1024
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(
    directory: str,
    *,
    user: int,
    group: int,
    allow_other: bool = True,
    read_only: bool = False,
) -> int:
    """Mount on `directory` and return the descriptor to serve it with. Raises OSError."""
    fuse = os.open("/dev/fuse", os.O_RDWR)
    mode = stat.S_IFMT(os.stat(directory).st_mode)
    data = f"fd={fuse},rootmode={mode:o},user_id={user},group_id={group},default_permissions"
    data += ",allow_other" if allow_other else ""
    flags = MS_NOSUID | MS_NODEV | MS_NOATIME | (MS_RDONLY if read_only else 0)
    # `mount` shows: mountpoint-s3 on DIRECTORY type fuse.mount-s3.
    done = _libc.mount(
        b"mountpoint-s3",
        os.fsencode(directory),
        b"fuse.mount-s3",
        ctypes.c_ulong(flags),
        data.encode(),
    )
    if done != 0:
        number = ctypes.get_errno()
        os.close(fuse)
        raise OSError(number, f"mount: {os.strerror(number)}", directory)
    _read_ahead(directory)
    return fuse


def unmount(directory: str) -> None:
    """Unmount the directory, even if its process is dead. Open files stay open."""
    while is_mounted(directory):
        if _libc.umount2(os.fsencode(directory), MNT_DETACH) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"umount: {os.strerror(number)}", directory)


def is_mounted(directory: str) -> bool:
    """Return whether something is mounted there, without access to it: it may not answer."""
    return _device(directory) is not None


def _device(directory: str) -> str | None:
    found = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n"):
        fields = line.split(" ")
        if fields[4:5] == [directory]:
            found = fields[2]
    return found


def _read_ahead(directory: str) -> None:
    """Set read-ahead, which `run` may not. If /sys is read-only, leave the kernel's default."""
    with contextlib.suppress(OSError):
        setting = Path(f"/sys/class/bdi/{_device(directory)}/read_ahead_kb")
        setting.write_text(str(READ_AHEAD_KB))


def serve(arguments: argparse.Namespace) -> None:
    """Serve one program after another until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    directory = os.path.realpath(arguments.directory)
    if not is_mounted(directory):
        os.makedirs(directory, exist_ok=True)
    address = Path(arguments.socket)
    with contextlib.suppress(FileNotFoundError):
        address.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(address))
        os.chown(address, arguments.user, arguments.group)
        address.chmod(0o600)
        listening.listen()
        try:
            while True:
                client, _ = listening.accept()
                with client:
                    _serve_one(client, directory, arguments)
        finally:
            address.unlink(missing_ok=True)
            unmount(directory)


def _serve_one(client: socket.socket, directory: str, arguments: argparse.Namespace) -> None:
    client.settimeout(WAIT_S)
    try:
        unmount(directory)  # a mount that an earlier mounter left
        fuse = mount(
            directory,
            user=arguments.user,
            group=arguments.group,
            allow_other=arguments.allow_other,
            read_only=arguments.read_only,
        )
    except OSError as error:
        say(str(error))
        with contextlib.suppress(OSError):
            client.sendall(str(error).encode())
        return
    try:
        # Close our copy now. Then the kernel ends the mount when the other process ends, and no
        # program waits for an answer.
        with contextlib.suppress(OSError):
            socket.send_fds(client, [b"ok"], [fuse])
        os.close(fuse)
        say(f"{directory} is mounted")
        client.settimeout(None)
        with contextlib.suppress(OSError):
            client.recv(1)  # receives nothing: returns when the other process has ended
    finally:
        unmount(directory)
        say(f"{directory} is unmounted")


def run(arguments: argparse.Namespace) -> None:
    """Get the descriptor and become the command."""
    connection = _connect(arguments.socket)
    connection.settimeout(WAIT_S)
    message, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
    if not descriptors:
        sys.exit(f"nothing was mounted: {message.decode(errors='replace') or 'no answer'}")
    (fuse,) = descriptors
    connection.setblocking(True)
    # Both stay open in the command. `serve` notices its end when the connection closes.
    os.set_inheritable(connection.fileno(), True)
    os.set_inheritable(fuse, True)
    command = [word.replace("/dev/fd/N", f"/dev/fd/{fuse}") for word in arguments.command]
    os.execvp(command[0], command)


def _connect(address: str) -> socket.socket:
    deadline = time.monotonic() + WAIT_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                sys.exit(f"{address}: {error}")
            time.sleep(0.2)


def say(text: str) -> None:
    print(f"mounter: {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    server = commands.add_parser("serve")
    server.add_argument("socket")
    server.add_argument("directory")
    server.add_argument("--user", type=int, default=0, help="uid that may connect")
    server.add_argument("--group", type=int, default=0)
    server.add_argument("--read-only", action="store_true")
    server.add_argument("--no-allow-other", dest="allow_other", action="store_false")
    server.set_defaults(act=serve)
    client = commands.add_parser("run")
    client.add_argument("socket")
    client.add_argument("command", nargs=argparse.REMAINDER)
    client.set_defaults(act=run)
    arguments = parser.parse_args()
    arguments.act(arguments)


if __name__ == "__main__":
    main()
