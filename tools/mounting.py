"""Mount and unmount with the installed `mount-s3`, and ensure that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tools.processes import POLL_INTERVAL_S

MOUNT_TIMEOUT_S = 60.0
UNMOUNT_TIMEOUT_S = 15.0
COUNTERS_TIMEOUT_S = 15.0
LOG_TAIL_LINES = 25

#: The least value of MOUNTPOINT_LOG with which `counters` works.
COUNTERS_FILTER = "mountpoint.metrics=info"
#: How the mount's processes are started: the program, its keeper, and the keeper's next workers.
KEEPER = b"/mount/kept/keeper.py"
PROGRAMS = (b"/mount-s3", KEEPER, b"mountpoint.mount.kept.worker")
#: The beginning of the line, after its time.
COUNTERS_LINE = ["level=info", "logger=mountpoint.metrics", "event=counters"]


class MountError(RuntimeError):
    """Mounting or unmounting failed; the message says why."""


def mount(
    bucket: str,
    directory: Path,
    options: list[str],
    environment: dict[str, str],
    log_directory: Path,
) -> list[str]:
    """Mount a bucket in the background, as a user would; return the command.

    `environment` has the credentials. The mount gets no other variables of AWS.
    """
    program = Path(sys.executable).with_name("mount-s3")
    if not program.exists():
        raise MountError(f"{program} does not exist: run make setup")
    command = [
        str(program),
        bucket,
        str(directory),
        *options,
        "--log-directory",
        str(log_directory),
    ]
    # The AWS configuration of this machine's user is not for a server on loopback. And where
    # bytecode is not kept, each mount would compile the program.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    settings = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    log_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    output = log_directory.with_name("mount-s3.output")
    # A file, not a pipe: the background process may keep it open.
    with output.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=inherited | settings | environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = process.wait(MOUNT_TIMEOUT_S)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise MountError(f"mount-s3 did not return within {MOUNT_TIMEOUT_S:.0f} s") from error
        raise
    if code != 0:
        text = output.read_text(errors="replace").strip()
        raise MountError(f"mount-s3 ended with exit code {code}: {text or '(no output)'}")
    if not is_mounted(directory):
        raise MountError(f"mount-s3 returned 0, but nothing is mounted at {directory}")
    return command


def unmount(directory: Path) -> None:
    """Unmount and wait until mount-s3 has ended. If force is needed to leave no mount and no
    process behind, use it and raise MountError."""
    problem = ""
    deadline = time.monotonic() + UNMOUNT_TIMEOUT_S
    while is_mounted(directory) and not problem:
        result = subprocess.run(
            ["fusermount", "-u", str(directory)], capture_output=True, text=True, check=False
        )
        if result.returncode != 0 and time.monotonic() > deadline:
            # In use, or hanging: detach it. Open files stay open.
            problem = f"cannot unmount: {result.stderr.strip()}"
            subprocess.run(["fusermount", "-uz", str(directory)], check=False)
        elif result.returncode != 0:
            time.sleep(POLL_INTERVAL_S)
    deadline = time.monotonic() + UNMOUNT_TIMEOUT_S
    while pids := mount_processes(directory):
        if time.monotonic() > deadline:
            problem = problem or "mount-s3 did not end after it was unmounted"
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            break
        time.sleep(POLL_INTERVAL_S)
    if problem:
        raise MountError(problem)


def is_mounted(directory: Path) -> bool:
    """Return whether something is mounted there, even if it no longer answers."""
    # Read the kernel's table: os.path.ismount is False for a dead mount.
    escaped = os.fsencode(directory)
    for character in b"\\ \t\n":
        escaped = escaped.replace(bytes([character]), b"\\%03o" % character)
    mounts = Path("/proc/self/mountinfo").read_bytes().split(b"\n")
    return any(line.split(b" ")[4:5] == [escaped] for line in mounts)


def log_tail(log_directory: Path) -> str:
    """Return the last lines of each log of mount-s3, below its name."""
    tails = []
    for path in sorted(log_directory.glob("*")):
        lines = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        if lines:
            tails.append("\n".join([f"--- {path.name}", *lines]))
    return "\n".join(tails) or "(mount-s3 logged nothing)"


def counters(pid: int, log_directory: Path) -> dict[str, int]:
    """Get the counters of a mount: send a signal, and read the log line that it causes.

    The log must have lines at info level (COUNTERS_FILTER).
    """
    before = len(logged_counters(log_directory))
    os.kill(pid, signal.SIGUSR2)
    deadline = time.monotonic() + COUNTERS_TIMEOUT_S
    while len(lines := logged_counters(log_directory)) == before:
        if time.monotonic() > deadline:
            raise MountError(f"mount-s3 wrote no counters into {log_directory}")
        time.sleep(POLL_INTERVAL_S)
    return lines[-1]


def logged_counters(log_directory: Path) -> list[dict[str, int]]:
    """Return the counters of each such line in the logs of mounts, in the order of time."""
    lines = []
    for path in log_directory.glob("*.log"):
        # Each line is one write, which may be in progress: the last line may be incomplete.
        text = path.read_text(errors="replace")
        lines += [line.split() for line in text.split("\n")[:-1]]
    # By the timestamps: the names of logs that began in the same second are in no order.
    lines.sort(key=lambda words: words[:1])
    values = [words[4:] for words in lines if words[1:4] == COUNTERS_LINE]
    pairs = [(word.partition("=") for word in words) for words in values]
    return [{name: int(value) for name, _, value in each} for each in pairs]


def serving_process(directory: Path) -> int:
    """Return the process that serves the mount, not its keeper."""
    (pid,) = workers(directory)
    return pid


def workers(directory: Path) -> list[int]:
    """Return the processes that serve the mount, or are to do so."""
    return [pid for pid, program in _mount_programs(directory).items() if program != KEEPER]


def keepers(directory: Path) -> list[int]:
    """Return the mount's keeper, if it has one."""
    return [pid for pid, program in _mount_programs(directory).items() if program == KEEPER]


def mount_processes(directory: Path) -> list[int]:
    """Return the mount-s3 processes whose command line has this directory."""
    return list(_mount_programs(directory))


def _mount_programs(directory: Path) -> dict[int, bytes]:
    """Return the one of PROGRAMS that each of these processes runs."""
    wanted = os.fsencode(directory)
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # Processes may end meanwhile, and those of other users cannot be read.
        with contextlib.suppress(OSError):
            arguments = path.read_bytes().split(b"\0")
            programs = [p for a in arguments[:4] for p in PROGRAMS if a.endswith(p)]
            if wanted in arguments and programs:
                found[int(path.parent.name)] = programs[0]
    return found
