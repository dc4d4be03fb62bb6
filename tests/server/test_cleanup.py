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
from mountpoint.upload.pending_journal import Journal, Place
directory, url, bucket, *keys = sys.argv[1:]
endpoint = Endpoint("http", urlsplit(url).netloc, f"/{bucket}", "us-east-1", "s3", "v4")
client = CrtClient(endpoint, Credentials(CredentialsConfig()), ClientConfig(), counters=Counters())
journal = Journal(Path(directory), Place(bucket, url))
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
        self.environment = {**os.environ, **store.environment, "XDG_STATE_HOME": str(state)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def mount(self, *names: str) -> subprocess.Popen[bytes]:
        """Start a process that has created an upload of each key."""
        command = [sys.executable, "-c", MOUNT, str(self.journals), self.store.endpoint_url]
        command += [self.store.bucket, *(self.prefix + name for name in names)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=self.environment)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait(SAFE_S)

    def begin(self, name: str) -> str:
        """Create an upload as another program would."""
        answer = self.store.client().create_multipart_upload(
            Bucket=self.store.bucket, Key=self.prefix + name
        )
        return str(answer["UploadId"])

    def pending(self) -> list[str]:
        """Return the names of the pending uploads."""
        found = self.store.client().list_multipart_uploads(
            Bucket=self.store.bucket, Prefix=self.prefix
        )
        return sorted(each["Key"].removeprefix(self.prefix) for each in found.get("Uploads", []))

    def run(self, *options: str, answer: str = "") -> "subprocess.CompletedProcess[str]":
        """Run the command."""
        program = [sys.executable, "-c", "from mountpoint.ctl.main import main; main()", "cleanup"]
        connection = ["--endpoint-url", self.store.endpoint_url, "--region", "us-east-1"]
        connection += ["--force-path-style", "--prefix", self.prefix]
        return subprocess.run(
            [*program, self.store.bucket, *connection, *options],
            env=self.environment,
            input=answer,
            capture_output=True,
            text=True,
            timeout=SAFE_S,
            check=False,
        )

    def cleanup(self, *options: str) -> dict[str, str]:
        """Run the command; return the outcome for each upload."""
        result = self.run("--json", *options)
        assert result.returncode == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return {each["key"].removeprefix(self.prefix): each["outcome"] for each in found["uploads"]}


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A machine, and a server: ministack, unless the test names another."""
    made = Machine(request.getfixturevalue(getattr(request, "param", "flat_store")), tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            made.kill(process)
        assert process.stdout is not None
        process.stdout.close()
    made.run("--all", "--yes", "--older-than", "0")


@pytest.mark.parametrize("machine", ["store", "flat_store"], indirect=True)
def test_what_a_killed_mount_left(machine: Machine) -> None:
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
    assert machine.cleanup("--older-than", "0") == {
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
    """By default uploads younger than an hour stay."""
    machine.kill(machine.mount("young"))
    assert machine.cleanup() == {"young": "kept"}
    assert machine.pending() == ["young"]
    assert machine.cleanup("--older-than", "0") == {"young": "aborted"}


def test_a_dry_run(machine: Machine) -> None:
    """A dry run shows what would be done and changes nothing: a later run finds the same."""
    machine.kill(machine.mount("dead"))
    machine.begin("foreign")
    for _ in range(2):
        assert machine.cleanup("--older-than", "0", "--dry-run", "--all") == {
            "dead": "would_abort",
            "foreign": "would_abort",
        }
    assert machine.pending() == ["dead", "foreign"]


def test_all_asks(machine: Machine) -> None:
    """Uploads of others are aborted only after a yes or with --yes, and a living mount's never."""
    machine.mount("living")
    machine.begin("foreign")
    refused = machine.run("--all", "--older-than", "0", answer="n\n")
    assert refused.returncode == 1
    assert "Abort 1 upload that" in refused.stderr
    assert machine.pending() == ["foreign", "living"]
    agreed = machine.run("--all", "--older-than", "0", answer="y\n")
    assert agreed.returncode == 0, agreed.stderr
    assert machine.pending() == ["living"]
    machine.begin("foreign")
    assert machine.cleanup("--all", "--yes", "--older-than", "0") == {
        "foreign": "aborted",
        "living": "kept",
    }


def test_what_is_over_is_forgotten(machine: Machine) -> None:
    """If others have completed or aborted a dead mount's uploads, they leave the journal."""
    machine.kill(machine.mount("dead"))
    client = machine.store.client()
    for each in client.list_multipart_uploads(Bucket=machine.store.bucket, Prefix=machine.prefix)[
        "Uploads"
    ]:
        client.abort_multipart_upload(
            Bucket=machine.store.bucket, Key=each["Key"], UploadId=each["UploadId"]
        )
    assert len(list(machine.journals.iterdir())) == 1
    assert machine.cleanup() == {}
    assert list(machine.journals.iterdir()) == []


def test_lines(machine: Machine) -> None:
    """Text: a line for each upload, the reason for each that stays, and a summary."""
    machine.kill(machine.mount("dead"))
    machine.begin("foreign")
    result = machine.run("--older-than", "0")
    assert result.returncode == 0
    aborted, kept, last = sorted(result.stdout.splitlines())
    assert aborted.startswith("aborted")
    assert aborted.endswith(f"old  {machine.prefix}dead")
    assert kept.startswith("kept")
    assert kept.endswith("foreign  (not started by a mount of this machine and user)")
    assert last.endswith(f"of bucket {machine.store.bucket}: 1 aborted, 1 kept")


def test_a_bucket_that_is_not_there(machine: Machine) -> None:
    """The message says that the bucket is missing, and what to do; the exit code is 1."""
    program = [sys.executable, "-c", "from mountpoint.ctl.main import main; main()", "cleanup"]
    result = subprocess.run(
        [*program, "no-such-bucket", "--endpoint-url", machine.store.endpoint_url],
        env=machine.environment,
        capture_output=True,
        text=True,
        timeout=SAFE_S,
        check=False,
    )
    assert result.returncode == 1
    assert "no-such-bucket" in result.stderr
