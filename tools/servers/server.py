"""The common parts of the servers: start and end, keys, folder and log.

A server listens only on loopback, at ports that were free just before. It has its own temporary
folder for data and secret keys, and ends with this process. Not known here: the contents of the
bucket, and mounts.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import boto3
import botocore.config
import botocore.exceptions

from tools.processes import Ports, end_process_group, start_ticks

REGION = "us-east-1"

# SeaweedFS needs 0.5 s to start and ministack 2 s; on a busy machine much more.
START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05
LOG_TAIL_LINES = 25
START_ATTEMPTS = 2

# The only variables that servers inherit. They need no others, and would read many: SeaweedFS takes
# settings from WEED_* and S3_*, and ministack from some two hundred variables.
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SSL_CERT_FILE")


class ServerError(RuntimeError):
    """A server did not start. The message says why, and has the end of its log."""


class Server:
    """A server with its ports, keys, folder and process, which always ends.

    It is killed: what it has stored is not needed any more, and an orderly stop of SeaweedFS waits
    15 s for the connections of a mount.

    Without `folder` the server creates a temporary folder, which `stop` removes. A given folder
    must be empty. It is not removed, and has the server's log.
    """

    name: ClassVar[str]

    def __init__(self, bucket: str = "test-bucket", folder: Path | None = None) -> None:
        self.bucket = bucket
        self.access_key = "AKIA" + secrets.token_hex(8).upper()
        self.secret_key = secrets.token_hex(20)
        self.endpoint_url = ""
        self.region = REGION
        self._given_folder = folder
        self._folder = Path()
        self._ports: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._started: tuple[list[str], dict[str, str]] = ([], {})  # its command and environment

    # -- start and end ---------------------------------------------------------------------

    def start(self) -> Self:
        """Start the server and wait until the bucket can be used.

        Raises ServerError if it is not installed, exits, or does not serve in time.
        """
        if self._process is not None:
            raise ServerError(f"{self.name} is already running")
        self._folder = self._given_folder or Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        atexit.register(self.stop)
        try:
            for attempt in range(1, START_ATTEMPTS + 1):
                try:
                    self._launch()
                    self._wait_until_it_serves()
                    break
                except ServerError:
                    # Usually another program took a port between release and bind.
                    if attempt == START_ATTEMPTS or self.pid_if_running is not None:
                        raise
                    self._end_process()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kill the server, and remove its temporary folder."""
        atexit.unregister(self.stop)
        self._end_process()
        if self._given_folder is None and self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """Kill the server, as a crash would. What it has stored stays."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def start_again(self) -> None:
        """Start a server that was killed, at the same port. It answers a moment later."""
        self._run("ab")

    def note(self) -> dict[str, Any]:
        """Return the data with which `end_noted` can end the server after this process."""
        pid = self.pid_if_running
        if pid is None:
            raise ServerError(f"{self.name} is not running. Its log:\n{self.log_tail()}")
        return {"pid": pid, "start_ticks": start_ticks(pid), "ports": self._ports}

    def leave_running(self) -> None:
        """Let the server outlive this process. Afterwards only its `note` can end it."""
        atexit.unregister(self.stop)
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # -- use -------------------------------------------------------------------------------

    @property
    def pid_if_running(self) -> int | None:
        """The process id; None if the server has not started or has ended."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """The variables that give an S3 program this server's keys."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }

    def client(self, **config: Any) -> Any:
        """Return a boto3 S3 client. `config` is for botocore's Config."""
        settings: dict[str, Any] = {
            "s3": {"addressing_style": "path"},
            # Never use a proxy for loopback, even if the environment names one.
            "proxies": {},
            "connect_timeout": 5,
            "read_timeout": 60,
        }
        # Not the default session: it is shared, and sessions of boto3 are not thread-safe.
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(**(settings | config)),
        )

    def log_tail(self) -> str:
        """Return the last lines that the server printed."""
        try:
            text = (self._folder / "log").read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])

    # -- for subclasses ---------------------------------------------------

    def _command(self, ports: Ports) -> tuple[int, list[str], dict[str, str]]:
        """Return the S3 port, the command line, and additional environment variables."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Create the bucket, unless the command line does."""

    # -- process ---------------------------------------------------------------------------

    def _launch(self) -> None:
        ports = Ports()
        try:
            port, command, extra = self._command(ports)
        finally:
            # Only now: while the sockets are bound, no other server gets these ports.
            ports.release()
        self.endpoint_url = f"http://127.0.0.1:{port}"
        environment = {k: os.environ[k] for k in KEPT_ENVIRONMENT if k in os.environ}
        # HOME and TMPDIR as well: both servers read settings and leave files there.
        environment |= {"HOME": str(self._folder), "TMPDIR": str(self._folder), **extra}
        self._started = command, environment
        self._run("wb")

    def _run(self, log_mode: str) -> None:
        command, environment = self._started
        with (self._folder / "log").open(log_mode) as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own process group: Ctrl-C does not reach it, a kill reaches its children.
                start_new_session=True,
            )

    def _wait_until_it_serves(self) -> None:
        """Poll until the bucket answers a request that is signed with this server's keys."""
        client = self.client(retries={"total_max_attempts": 1}, read_timeout=5)
        deadline = time.monotonic() + START_TIMEOUT_S
        reason = ""
        prepared = False
        while time.monotonic() < deadline:
            if self.pid_if_running is None:
                code = self._process.returncode if self._process else None
                raise ServerError(f"{self.name} exited with {code}. Its log:\n{self.log_tail()}")
            try:
                if not prepared:
                    self._prepare()
                    prepared = True
                client.head_bucket(Bucket=self.bucket)
                return
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                reason = str(error)
            time.sleep(POLL_INTERVAL_S)
        raise ServerError(
            f"{self.name} did not serve within {START_TIMEOUT_S:.0f} s (last: {reason}). "
            f"Its log:\n{self.log_tail()}"
        )

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            end_process_group(process.pid, process, at_once=True)
            _remove_sockets(self._ports)


def end_noted(note: dict[str, Any]) -> None:
    """End a server by its note. It may have ended already."""
    if start_ticks(note["pid"]) == note["start_ticks"]:
        end_process_group(note["pid"], at_once=True)
    _remove_sockets(note["ports"])


def _remove_sockets(ports: list[int]) -> None:
    # SeaweedFS has unix sockets in /tmp, named by port. Some remain even after a clean stop.
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


def executable(name: str, package: str) -> str:
    """Return the path of a program that a package installed beside this interpreter."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ServerError(
            f"{path} does not exist: the package {package} is not installed. Run: make setup"
        )
    return str(path)
