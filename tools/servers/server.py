"""What the servers have in common: their life on loopback, keys, folder and log.

A server listens on loopback only, on ports that were free a moment ago, keeps its data in a
temporary folder of its own, has keys that nobody else knows, and ends with this process. Not
known here: what is in the bucket, and mounting.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
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

# SeaweedFS serves after 0.5 s and ministack after 2 s; a loaded machine may take much longer.
START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05
LOG_TAIL_LINES = 25
START_ATTEMPTS = 2

# What is kept of our own environment. Neither server needs more, and both read a lot of it:
# SeaweedFS takes settings from WEED_* and S3_*, ministack from some two hundred variables.
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SSL_CERT_FILE")


class ServerError(RuntimeError):
    """A server did not start; the message says why, with the end of its log."""


class Server:
    """What the servers have in common: ports, keys, folder, and a process that is always ended.

    Without a folder a temporary one is made and removed on `stop`. A folder that is given must
    be empty and is left to the caller, with the server's log in it.
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

    # -- life ------------------------------------------------------------------------------

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
                    # The usual reason is a port that was taken between release and bind.
                    if attempt == START_ATTEMPTS or self.pid_if_running is not None:
                        raise
                    self._end_process()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server, by force if it takes too long, and remove its temporary folder."""
        atexit.unregister(self.stop)
        self._end_process()
        if self._given_folder is None and self._folder != Path():
            shutil.rmtree(self._folder, ignore_errors=True)

    def note(self) -> dict[str, Any]:
        """Return what `end_noted` needs to end the server when this process no longer can."""
        pid = self.pid_if_running
        if pid is None:
            raise ServerError(f"{self.name} is not running. Its log:\n{self.log_tail()}")
        return {"pid": pid, "start_ticks": start_ticks(pid), "ports": self._ports}

    def leave_running(self) -> None:
        """Let the server outlive this process; from now on its `note` is what ends it."""
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
        """The process id, or None if it was not started or has ended."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which any S3 program gets this server's keys."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }

    def client(self, **config: Any) -> Any:
        """Return a boto3 S3 client; `config` goes to botocore's Config."""
        settings: dict[str, Any] = {
            "s3": {"addressing_style": "path"},
            # Loopback never goes through a proxy, whatever the environment says.
            "proxies": {},
            "connect_timeout": 5,
            "read_timeout": 60,
        }
        # A session of its own: the default one is shared, and boto3's are not thread-safe.
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

    # -- what each server says of itself ---------------------------------------------------

    def _command(self, ports: Ports) -> tuple[int, list[str], dict[str, str]]:
        """Return the S3 port, the command line, and the environment beyond the kept one."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Make the bucket, if the command line has not."""

    # -- process ---------------------------------------------------------------------------

    def _launch(self) -> None:
        ports = Ports()
        try:
            port, command, extra = self._command(ports)
        finally:
            # Only now: while the sockets are bound, nobody is given the same ports.
            ports.release()
        self.endpoint_url = f"http://127.0.0.1:{port}"
        environment = {k: os.environ[k] for k in KEPT_ENVIRONMENT if k in os.environ}
        # HOME and TMPDIR too: both servers look for settings and leave files there.
        environment |= {"HOME": str(self._folder), "TMPDIR": str(self._folder), **extra}
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own process group: Ctrl-C is ours to handle, and a kill reaches its children.
                start_new_session=True,
            )

    def _wait_until_it_serves(self) -> None:
        """Poll until the bucket answers a request signed with the keys of this very server."""
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
            end_process_group(process.pid, process)
            _remove_sockets(self._ports)


def end_noted(note: dict[str, Any]) -> None:
    """End a server by its note; one that has already ended is no error."""
    if start_ticks(note["pid"]) == note["start_ticks"]:
        end_process_group(note["pid"])
    _remove_sockets(note["ports"])


def _remove_sockets(ports: list[int]) -> None:
    # SeaweedFS has unix sockets in /tmp, named by port; some stay even after a clean stop.
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


def executable(name: str, package: str) -> str:
    """Return the path of a program that a package has put beside this interpreter."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ServerError(
            f"{path} does not exist: the package {package} is not installed. Run: make setup"
        )
    return str(path)
