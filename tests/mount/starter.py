"""Start `mount-s3` and `mount-s3ctl` without importing them each time.

Importing takes the program longer than mounting, and the tests mount hundreds of times. `run` has a
process that has imported it fork: the child has its own arguments, variables, output and command
line, and calls the program's own `main`. Tests of how the program itself is started use
`mounting.run_anew`.
"""

import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Where the programs begin.
MAINS = {"mount-s3": "mountpoint.cli.main", "mount-s3ctl": "mountpoint.ctl.main"}
#: What it takes to mount; nothing of it starts a thread.
MODULES = [*MAINS.values(), "mountpoint.mount.run", "botocore.session"]
#: Bytes for the command line of what is started.
ROOM = 1 << 12

_starting = threading.Lock()


def run(
    command: Sequence[str], env: dict[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end, as `subprocess.run` does."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = ask(server(), command, env, (out.fileno(), err.fileno()), timeout_s)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())


def ask(
    address: str,
    command: Sequence[str],
    env: dict[str, str],
    output: tuple[int, int],
    timeout_s: float | None,
) -> int:
    """Have the process at `address` run a command, with this output; return its exit code."""
    request = json.dumps({"command": list(command), "env": env}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(address)
        socket.send_fds(connection, [b"%d\n" % len(request)], output)
        connection.sendall(request)
        return int(connection.recv(16))


#: A program that has another process run the one that it stands for. It imports next to nothing.
STAND_IN = """#!{python} -IS
import os, sys
sys.path.append({root!r})
from tests.mount.starter import ask
sys.exit(ask({address!r}, [{program!r}, *sys.argv[1:]], dict(os.environ), (1, 2), None))
"""


def write_stand_ins(folder: Path) -> None:
    """Write programs with our names that a shell can run. They do not pass on input or signals."""
    for name in MAINS:
        program = Path(sys.executable).with_name(name)
        text = STAND_IN.format(
            python=sys.executable, root=str(ROOT), address=server(), program=str(program)
        )
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def server() -> str:
    """Return where a process listens that forks. It ends with this one."""
    with _starting:
        return _started()


@functools.cache
def _started() -> str:
    path = str(Path(tempfile.mkdtemp(prefix="mount-s3-starter-")) / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.mount.starter", str(listener.fileno()), " " * ROOM],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for who has started it
        )
    atexit.register(_stop, process, Path(path))
    return path


def _stop(process: "subprocess.Popen[bytes]", path: Path) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    path.unlink()
    path.parent.rmdir()


# --- the process that forks ---


def _serve(listener: socket.socket) -> None:
    """Answer each connection in a child, until whoever has started this is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for these children
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in readable:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection)
            os._exit(0)  # to end the interpreter takes as long as to mount
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Run what a connection asks for in a child of its own, and send its exit status."""
    size, (out, err), _, _ = socket.recv_fds(connection, 16, 2)
    with connection.makefile("rb") as asked:
        head, _, rest = size.partition(b"\n")
        request = json.loads(rest + asked.read(int(head) - len(rest)))
    child = os.fork()
    if child == 0:
        connection.close()
        _become(request["command"], request["env"], out, err)
    _, status = os.waitpid(child, 0)
    connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))


def _become(command: list[str], env: dict[str, str], out: int, err: int) -> None:
    """Be that command: this ends as the program ends."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, out, err)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # New ones: a pipe cannot seek, as what was there before could.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    _show([sys.executable, *command])
    sys.argv = command
    sys.exit(importlib.import_module(MAINS[Path(command[0]).name]).main())


def _show(command: list[str]) -> None:
    """Have ps(1) show a command line in the place of ours."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc(5)
    line = b"".join(os.fsencode(each) + b"\0" for each in command)
    assert len(line) < end - start
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, line, len(line))


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
