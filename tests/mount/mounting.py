"""Run the installed `mount-s3`, and see what it does."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.conftest import Store
from tests.mount import starter
from tools import mounting

PROGRAM = Path(sys.executable).with_name("mount-s3")
TIMEOUT_S = 45.0


def environment(extra: dict[str, str]) -> dict[str, str]:
    """Return our environment without the variables of AWS and of proxies, with `extra`."""
    others = re.compile(r"AWS_|\w+_proxy$", re.IGNORECASE)
    kept = {key: value for key, value in os.environ.items() if not others.match(key)}
    # The program's folder: mount(8) finds the program in PATH.
    kept["PATH"] = f"{PROGRAM.parent}:{kept['PATH']}"
    nothing = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return kept | nothing | extra


def run(
    *arguments: str | Path, env: dict[str, str], timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run mount-s3 to its end; in the background that is when the mount is ready."""
    # For the interpreter; and botocore looks where its caches are when it is imported.
    if any(name.startswith(("PYTHON", "LD_", "HOME")) for name in env):
        return run_anew(*arguments, env=env, timeout_s=timeout_s)
    return starter.run([str(PROGRAM), *map(str, arguments)], environment(env), timeout_s)


def run_anew(
    *arguments: str | Path,
    env: dict[str, str],
    timeout_s: float = TIMEOUT_S,
    before: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Do the same with an interpreter of its own, as a user would, started by `before`."""
    return subprocess.run(
        [*before, PROGRAM, *arguments],
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def store_options(store: Store, *, endpoint_url: str | None = None) -> list[str]:
    """Return the options that name the store."""
    url = endpoint_url or store.endpoint_url
    return ["--endpoint-url", url, "--region", "us-east-1", "--force-path-style"]


class Mount:
    """A bucket mounted in the background at `path`, and its log."""

    def __init__(
        self, root: Path, log_directory: Path, *, below: str = "", log_from: int = 0
    ) -> None:
        self.path = root / below
        self.root = root
        self._logs = log_directory
        self._log_from = log_from

    def part(self, name: str) -> "Mount":
        """Return this mount for one test: its `path` is a directory, and its log begins now."""
        return Mount(self.root, self._logs, below=name, log_from=len(self._whole_log()))

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        return mounting.serving_process(self.root)

    @property
    def log(self) -> str:
        """Everything that it has logged."""
        return self._whole_log()[self._log_from :]

    def _whole_log(self) -> str:
        return "".join(file.read_text() for file in sorted(self._logs.glob("*.log")))

    def counters(self) -> dict[str, int]:
        """The counters so far; the mount must log at info level."""
        return mounting.counters(self.pid, self._logs)

    def is_mounted(self) -> bool:
        """Whether the kernel has it mounted, alive or dead."""
        return mounting.is_mounted(self.root)

    def has_ended(self) -> bool:
        """Whether its process is gone."""
        return not mounting.mount_processes(self.root)


@contextlib.contextmanager
def mounted(
    store: Store,
    folder: Path,
    *options: str,
    bucket: str | None = None,
    endpoint_url: str | None = None,
    environ: dict[str, str] | None = None,
    how: Callable[..., subprocess.CompletedProcess[str]] = run,
) -> Iterator[Mount]:
    """Mount the store's bucket in `folder`, and unmount it in any case.

    With `environ` no option says where the bucket is: those variables do. `how` is `run` or
    `run_anew`.
    """
    path, logs = folder / "mnt", folder / "log"
    path.mkdir(exist_ok=True)
    where = store_options(store, endpoint_url=endpoint_url) if environ is None else []
    result = how(
        bucket or store.bucket,
        path,
        *where,
        "--log-directory",
        logs,
        *shlex.split(os.environ.get("MOUNT_S3_TEST_OPTIONS", "")),
        *options,
        env=store.environment | (environ or {}),
    )
    try:
        assert result.returncode == 0, result.stderr
        yield Mount(path, logs)
    finally:
        clean_up(path)


@contextlib.contextmanager
def foreground(
    store: Store,
    folder: Path,
    *options: str,
    before: Sequence[str] = (),
    environ: dict[str, str] | None = None,
) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Run the program in the foreground, started by the command `before`, until it is mounted.

    Yields the process and the directory. At the end the process is gone.
    """
    path = folder / "mnt"
    path.mkdir()
    program = subprocess.Popen(
        [*before, PROGRAM, store.bucket, path, "--foreground", *options, *store_options(store)],
        env=environment(store.environment | (environ or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        eventually(lambda: mounting.is_mounted(path))
        yield program, path
    finally:
        program.kill()
        program.wait()
        assert program.stdout is not None
        program.stdout.close()
        clean_up(path)


def content(store: Store, key: str) -> bytes | None:
    """Return an object's bytes, or None."""
    client = store.client()
    try:
        found: bytes = client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
        return found
    except client.exceptions.NoSuchKey:
        return None


def pending(store: Store, prefix: str) -> list[str]:
    """Return the keys of pending multipart uploads."""
    answer = store.client().list_multipart_uploads(Bucket=store.bucket, Prefix=prefix)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def clean_up(path: Path) -> None:
    """Unmount `path`, and end the mount's processes."""
    for pid in mounting.mount_processes(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    with contextlib.suppress(AssertionError):
        eventually(lambda: not mounting.mount_processes(path))
    for pid in mounting.mount_processes(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if mounting.is_mounted(path):
        subprocess.run(["fusermount", "-uz", path], check=False)


def errno_of(action: Callable[[], object]) -> int | None:
    """Return the errno of a failed action, or None."""
    try:
        action()
    except OSError as error:
        return error.errno
    return None


def eventually(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    """Wait until the condition holds. Raises AssertionError if it does not."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.02)
