"""`mount-s3ctl cleanup` with real servers removes only uploads of killed processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from mountpoint.ctl.main import main
from mountpoint.upload.pending_journal import BucketAddress, Journal
from tests.conftest import Store

pytestmark = pytest.mark.server

SAFE_S = 60.0

#: A process that creates uploads of keys as a mount does, and runs until it is killed.
MOUNT = """
import sys, threading, time
from pathlib import Path
from urllib.parse import urlsplit
from mountpoint.config import ClientConfig, CredentialsConfig
from mountpoint.metrics.counters import Counters
from mountpoint.s3.client import Body, PutOptions
from mountpoint.s3.aws.credentials import Credentials
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.upload.pending_journal import Journal, BucketAddress
directory, url, bucket, *keys = sys.argv[1:]
endpoint = Endpoint("http", urlsplit(url).netloc, f"/{bucket}", "us-east-1", "s3", "v4")
client = CrtClient(endpoint, Credentials(CredentialsConfig()), ClientConfig(), counters=Counters())
journal = Journal(Path(directory), BucketAddress(bucket, url))
for key in keys:
    upload_id = client.create_upload(key.encode(), PutOptions()).result(30)
    journal.begun(key.encode(), upload_id)
    part = Body([b"x" * 1000], 1000)
    client.upload_part(key.encode(), upload_id, 1, part).result(30)
print("ready", flush=True)
time.sleep(600)
"""


class Machine:
    """A machine whose mounts write to a store and are killed."""

    def __init__(self, store: Store, state: Path) -> None:
        self.store = store
        self.journals = state / "mount-s3"
        # Each test has its own keys, so that tests do not see each other's uploads.
        self.prefix = f"cleanup-{state.name}/"
        self.environment = {**store.environment, "XDG_STATE_HOME": str(state)}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.living = Journal(self.journals, BucketAddress(store.bucket, store.endpoint_url))

    def mount(self, *names: str) -> subprocess.Popen[bytes]:
        """Start a process that has created an upload of each key."""
        command = [sys.executable, "-c", MOUNT, str(self.journals), self.store.endpoint_url]
        command += [self.store.bucket, *(self.prefix + name for name in names)]
        environment = {**os.environ, **self.environment}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait(SAFE_S)

    def begin(self, name: str) -> str:
        """Begin an upload with another program."""
        key = {"Bucket": self.store.bucket, "Key": self.prefix + name}
        upload_id = str(self.store.client().create_multipart_upload(**key)["UploadId"])
        self.store.client().upload_part(**key, UploadId=upload_id, PartNumber=1, Body=b"x" * 1000)
        return upload_id

    def begin_here(self, name: str) -> None:
        """Begin an upload as a mount that lives does."""
        self.living.begun((self.prefix + name).encode(), self.begin(name))

    def leave(self, name: str) -> None:
        """Begin an upload as a mount that has died has done."""
        journal = Journal(self.journals, BucketAddress(self.store.bucket, self.store.endpoint_url))
        journal.begun((self.prefix + name).encode(), self.begin(name))
        journal.close()

    def uploads(self) -> list[dict[str, str]]:
        """Return what is pending, as boto3 names it."""
        found = self.store.client().list_multipart_uploads(
            Bucket=self.store.bucket, Prefix=self.prefix
        )
        names = ("Key", "UploadId")
        return [{name: each[name] for name in names} for each in found.get("Uploads", [])]

    def abort_all(self) -> None:
        """Abort what is pending, with another program."""
        for each in self.uploads():
            self.store.client().abort_multipart_upload(Bucket=self.store.bucket, **each)

    def pending(self) -> list[str]:
        """Return the names of what is pending."""
        return sorted(each["Key"].removeprefix(self.prefix) for each in self.uploads())

    def arguments(self, *options: str) -> list[str]:
        """Return the command line, without the program."""
        connection = ["--endpoint-url", self.store.endpoint_url, "--region", "us-east-1"]
        connection += ["--force-path-style", "--prefix", self.prefix]
        return ["cleanup", self.store.bucket, *connection, *options]

    def run(self, *options: str, answer: str = "") -> Result:
        """Run the command, in this process."""
        with capture_logs():
            return CliRunner().invoke(
                main, self.arguments(*options), input=answer, env=self.environment
            )

    def cleanup(self, *options: str) -> dict[str, str]:
        """Run the command; return the outcome for each upload."""
        result = self.run("--json", *options)
        assert result.exit_code == 0, result.stderr
        return self.outcomes(result.stdout)

    def outcomes(self, printed: str) -> dict[str, str]:
        """Return what has become of each, by its name."""
        found: dict[str, Any] = json.loads(printed)
        return {each["key"].removeprefix(self.prefix): each["outcome"] for each in found["uploads"]}


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    """A machine, and a server: ministack, unless the test names another."""
    # Keep the log of this process as it is.
    monkeypatch.setattr("mountpoint.ctl.cleanup.command.configure_log", lambda config: None)
    made = Machine(request.getfixturevalue(getattr(request, "param", "flat_store")), tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            made.kill(process)
        assert process.stdout is not None
        process.stdout.close()
    made.living.close()
    made.abort_all()


def run_program(machine: Machine, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command in a process of its own."""
    program = [sys.executable, "-c", "from mountpoint.ctl.main import main; main()"]
    return subprocess.run(
        [*program, *arguments],
        env={**os.environ, **machine.environment},
        capture_output=True,
        text=True,
        timeout=SAFE_S,
        check=False,
    )


@pytest.mark.parametrize("machine", ["store", "flat_store"], indirect=True)
def test_uploads_of_a_killed_mount_are_aborted(machine: Machine) -> None:
    """Only the killed mount's uploads are aborted and forgotten, not those of others."""
    dead, living = machine.mount("dead 1", "dead/2"), machine.mount("living")
    machine.begin("foreign")
    assert machine.cleanup("--older-than", "0") == {
        "dead 1": "kept",
        "dead/2": "kept",
        "living": "kept",
        "foreign": "kept",
    }
    machine.kill(dead)
    result = run_program(machine, *machine.arguments("--json", "--older-than", "0"))
    assert result.returncode == 0, result.stderr
    assert machine.outcomes(result.stdout) == {
        "dead 1": "aborted",
        "dead/2": "aborted",
        "living": "kept",
        "foreign": "kept",
    }
    assert machine.pending() == ["foreign", "living"]
    assert len(list(machine.journals.iterdir())) == 1
    machine.kill(living)
    machine.cleanup("--older-than", "0")
    assert machine.pending() == ["foreign"]
    assert list(machine.journals.iterdir()) == []


def test_the_young_stay(machine: Machine) -> None:
    """By default nothing goes that is younger than an hour."""
    machine.leave("young")
    assert machine.cleanup() == {"young": "kept"}
    assert machine.pending() == ["young"]
    assert machine.cleanup("--older-than", "0") == {"young": "aborted"}


def test_a_dry_run(machine: Machine) -> None:
    """It says what would be done, and does nothing; asking again finds it all."""
    machine.leave("dead")
    machine.begin("foreign")
    for _ in range(2):
        assert machine.cleanup("--older-than", "0", "--dry-run", "--all") == {
            "dead": "would_abort",
            "foreign": "would_abort",
        }
    assert machine.pending() == ["dead", "foreign"]


def test_all_asks(machine: Machine) -> None:
    """What others have begun goes only after a yes, or with --yes; a living mount's not even so."""
    machine.begin_here("living")
    machine.begin("foreign")
    refused = machine.run("--all", "--older-than", "0", answer="n\n")
    assert refused.exit_code == 1
    assert "Abort 1 upload that" in refused.stderr
    assert machine.pending() == ["foreign", "living"]
    agreed = machine.run("--all", "--older-than", "0", answer="y\n")
    assert agreed.exit_code == 0, agreed.stderr
    assert machine.pending() == ["living"]
    machine.begin("foreign")
    assert machine.cleanup("--all", "--yes", "--older-than", "0") == {
        "foreign": "aborted",
        "living": "kept",
    }


def test_ended_uploads_leave_the_journal(machine: Machine) -> None:
    """Uploads of a dead mount that somebody else has completed or aborted leave the journal."""
    machine.leave("dead")
    machine.abort_all()
    assert len(list(machine.journals.iterdir())) == 1
    assert machine.cleanup() == {}
    assert list(machine.journals.iterdir()) == []


def test_lines(machine: Machine) -> None:
    """For people: a line for each upload, with the reason of what stays, and a sum."""
    machine.leave("dead")
    machine.begin("foreign")
    result = machine.run("--older-than", "0")
    assert result.exit_code == 0
    aborted, kept, last = sorted(result.stdout.splitlines())
    assert aborted.startswith("aborted")
    assert aborted.endswith(f"old  {machine.prefix}dead")
    assert kept.startswith("kept")
    assert kept.endswith("foreign  (not started by a mount of this machine and user)")
    assert last.endswith(f"of bucket {machine.store.bucket}: 1 aborted, 1 kept")


def test_a_bucket_that_is_not_there(machine: Machine) -> None:
    """That is said, with what to do, and the exit code 1."""
    result = run_program(
        machine, "cleanup", "no-such-bucket", "--endpoint-url", machine.store.endpoint_url
    )
    assert result.returncode == 1
    assert "no-such-bucket" in result.stderr
