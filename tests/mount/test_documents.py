"""Each command of the documents runs unchanged, or the list says which test runs it.

A command is a line of an `sh` block. Only the reader's own names (bucket, directories, address of
the store) are replaced by those of the test.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import botocore.exceptions
import pytest
import trustme

from tests.conftest import Store
from tests.mount import starter
from tests.mount.mounting import TIMEOUT_S, clean_up, environment, run
from tools.mounting import is_mounted

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "bench" / "README.md"])
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
OURS = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:mount-s3|mount-s3ctl|umount) ")

#: Commands that are run elsewhere, by their beginning. The value is the path of the file that runs
#: them, or the reason why none does.
ELSEWHERE = {
    r"make ": "tests/unit/test_docs.py",
    r"ls ": "tests/mount/test_attributes.py",
    r"(systemctl|mount|cp|mkdir|printf) ": "tests/boot/test_systemd.py",
    r"WHEELS=\S+ BUCKET=": "tests/boot/test_ec2.py",
    r"buildah ": "tests/boot/test_image.py",
    r"mounter\.py ": "tests/boot/test_image.py",
    r"(apt|dnf|python3|ln|rm) |/opt/mount-s3/bin/pip |sudo packaging/": "packaging/build-wheels",
    r"\.venv/bin/python -m bench\.names": "bench/names.py",
    r"aws |n=0|jq |    |done": "the AWS CLI is not installed by anything of ours",
    r"prometheus ": "Prometheus is not installed by anything of ours",
    r"pip install|python -m build": "tests/unit/test_source_archive.py",
    r"find ": "tests/mount/test_warm.py",
    r"sudo (apt|dnf) |pipx ": "they would change the machine that runs the tests",
}


def commands() -> Iterator[tuple[str, str]]:
    """Yield the document and the command, without comments."""
    for path in DOCUMENTS:
        for block in BLOCK.findall(path.read_text()):
            for line in block.splitlines():
                command = re.sub(r"(^|\s+)#( .*|$)", "", line).rstrip()
                if command:
                    yield path.name, command


ALL = list(commands())
#: What several documents say is run once.
RUN = {command: name for name, command in ALL if OURS.match(command + " ")}


def test_there_are_some() -> None:
    """The documents contain commands."""
    assert len(RUN) > 20
    assert len(ALL) > 60


@pytest.mark.parametrize(("name", "command"), [each for each in ALL if each[1] not in RUN])
def test_commands_run_elsewhere(name: str, command: str) -> None:
    """A command that is not run here is run elsewhere, or cannot be run."""
    found = [where for start, where in ELSEWHERE.items() if re.match(start, command)]
    assert found, f"{name}: no test runs {command!r}"
    assert " " in found[0] or (ROOT / found[0]).exists()


#: Commands that run until Ctrl-C.
ENDLESS = re.compile(r"mount-s3ctl (stats (?!.*--once)|log .*-f)")

#: The directories in the documents.
PLACES = ("/mnt/data", "~/logs", "~/data")
CACHES = ("/var/cache/mount-s3", "/mnt/nvme/cache")
#: The bucket of a shared cache.
CACHE_BUCKET = "my-cache--use1-az4--x-s3"


class Reader:
    """A reader who follows the documents, with their own directories and profile."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.places = {place: folder / place.strip("~/").replace("/", "-") for place in PLACES}
        for path in self.places.values():
            path.mkdir()
        self._folder = folder
        self._programs = folder / "programs"
        self._programs.mkdir()
        starter.write_stand_ins(self._programs)
        self.cache = folder / "cache"
        self._ca = folder / "ca.pem"
        trustme.CA().cert_pem.write_to_path(str(self._ca))
        config = folder / "config"
        keys = "".join(
            f"{name.lower()} = {value}\n"
            for name, value in store.environment.items()
            if name.startswith("AWS_")
        )
        config.write_text(f"[profile work]\n{keys}")
        self.variables = {
            **store.environment,
            "AWS_CONFIG_FILE": str(config),
            "AWS_ENDPOINT_URL_S3": store.endpoint_url,
            "AWS_REGION": "us-east-1",
        }

    def own(self, command: str) -> str:
        """Return a command with the reader's own names."""
        command = re.sub(
            r"--endpoint-url \S+", f"--endpoint-url {self.store.endpoint_url}", command
        )
        command = command.replace("my-bucket", self.store.bucket).replace(".venv/bin/", "")
        command = command.replace("mount-s3 data ", f"mount-s3 {self.store.bucket} ")
        command = command.replace("ca.pem", str(self._ca))
        for place, path in self.places.items():
            command = command.replace(place, str(path))
        for place in CACHES:
            command = command.replace(place, str(self.cache))
        command = command.replace("list.txt", str(self._folder / "list.txt"))
        return command if shutil.which("jq") else command.partition(" | jq ")[0]

    def start(self, command: str) -> "subprocess.Popen[str]":
        """Run a command in bash."""
        env = environment(self.variables)
        if not ENDLESS.match(command):
            env["PATH"] = f"{self._programs}:{env['PATH']}"
        return subprocess.Popen(
            [
                "bash",
                "-o",
                "pipefail",
                "-c",
                f"exec {command}" if ENDLESS.match(command) else command,
            ],
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.mark.parametrize("command", RUN)
def test_command(command: str, store: Store, flat_store: Store, folder: Path) -> None:
    """It does what it is for: it mounts, unmounts, or says something, without an error."""
    reader = Reader(flat_store if "--no-sign-request" in command else store, folder)
    for key in ("logs/a file", "train/a", "train/b.parquet"):
        reader.store.put(key, b"x" * 100)
    if CACHE_BUCKET in command:
        with contextlib.suppress(botocore.exceptions.ClientError):
            reader.store.client().create_bucket(Bucket="cache")
        command = f"{command.replace(CACHE_BUCKET, 'cache')} --bucket-type general-purpose"
    own = reader.own(command)
    path = next((each for each in reader.places.values() if str(each) in own), None)
    mounts = "mount-s3 " in own and path is not None and "--check" not in own
    try:
        if "mount-s3ctl" in own or own.startswith("umount"):
            path = path or reader.places[PLACES[0]]
            (folder / "list.txt").write_text(f"{path}/logs/a file\n")
            options = ["--endpoint-url", reader.store.endpoint_url, "--cache", str(reader.cache)]
            done = run(reader.store.bucket, path, *options, env=reader.variables)
            assert done.returncode == 0, done.stderr
            os.listdir(path)
            if "log" in own:
                with pytest.raises(PermissionError):
                    (path / "logs" / "a file").unlink()
        process = reader.start(own)
        if ENDLESS.match(own):
            assert process.stdout is not None
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0 or ENDLESS.match(own), said
        if mounts:
            assert path is not None
            assert is_mounted(path)
            assert os.listdir(path)
        elif path is not None and "unmount" in own.replace(str(path), ""):
            assert not is_mounted(path)
        elif own.startswith("umount"):
            assert path is not None
            assert not is_mounted(path)
    finally:
        for each in reader.places.values():
            clean_up(each)
