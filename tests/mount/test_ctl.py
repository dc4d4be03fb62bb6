"""`mount-s3ctl` with real mounts: their answers, who gets them, and unmounting."""

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mountpoint.mount.control import SUFFIX, ask, socket_directory
from tests.conftest import Store
from tests.mount import starter
from tests.mount.mounting import (
    PROGRAM,
    TIMEOUT_S,
    Mount,
    content,
    environment,
    errno_of,
    eventually,
    mounted,
)
from tests.terminal import terminal
from tools.mounting import is_mounted

pytestmark = pytest.mark.mount

CTL = PROGRAM.with_name("mount-s3ctl")


def ctl(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run mount-s3ctl to its end."""
    return starter.run([str(CTL), *map(str, arguments)], environment(environ), TIMEOUT_S)


def done(*arguments: str | Path, **environ: str) -> str:
    """Run mount-s3ctl, which must succeed; return its output."""
    result = ctl(*arguments, **environ)
    assert result.returncode == 0, result.stderr
    return result.stdout


def stats(mount: Mount) -> dict[str, Any]:
    """Return all numbers of a mount."""
    found: dict[str, Any] = json.loads(done("stats", mount.path, "--once", "--json"))
    return found


def own_socket(mount: Mount) -> Path:
    """Return the socket of a mount."""
    (path,) = socket_directory(os.environ).glob(f"{mount.pid}-*{SUFFIX}")
    return path


@contextlib.contextmanager
def program(mount: Mount, script: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a Python script in the mount. Yields after its first line; kills it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script],
        cwd=mount.path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def documented(section: str) -> set[str]:
    """Return the names of the JSON fields that the document lists for a command."""
    text = (Path(__file__).parents[2] / "docs" / "mount-s3ctl.md").read_text()
    found = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    table = found[1][found[1].index("| field") :]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_status_names_the_mount(store: Store, folder: Path) -> None:
    """Text and JSON: place, bucket, user, open files, and permitted changes."""
    store.put("ctl/status/a", b"x" * 1000)
    with mounted(store, folder, "--prefix", "ctl/status/", "--read-only") as mount:
        with (mount.path / "a").open("rb"):
            found = [
                each
                for each in json.loads(done("status", "--json"))
                if each["directory"] == str(mount.path)
            ]
        assert set(found[0]) == documented("status")
        told = {name: found[0][name] for name in ("bucket", "prefix", "pid", "open_files")}
        assert told == {
            "bucket": store.bucket, "prefix": "ctl/status/", "pid": mount.pid, "open_files": 1
        }  # fmt: skip
        assert (found[0]["read_only"], found[0]["options"]) == (True, [])
        assert (found[0]["being_written"], found[0]["trouble"]) == ([], "")
        assert 10 << 20 < found[0]["rss_bytes"] < 1 << 30
        assert json.loads(done("status", mount.path / "a", "--json"))[0]["pid"] == mount.pid
        text = done("status", mount.path)
        assert text.startswith(f"{store.bucket}/ctl/status/ at {mount.path}\n")
        assert f"{store.bucket}/ctl/status/ at {mount.path}\n" in done("status")
        for said in (
            f"process {mount.pid}",
            "read-only",
            store.endpoint_url.partition("//")[2],
            "region us-east-1",
            "requests/s",
            "--memory-target",
            f"see the newest log in {folder / 'log'}",
        ):
            assert said in text, said


def test_every_command_as_json(store: Store, folder: Path) -> None:
    """The fields are those of the document, and errors are JSON, too."""
    store.put("ctl/json/a", b"x" * 100_000)
    options = ("--prefix", "ctl/json/", "--allow-delete", "--attributes", "ignore")
    with mounted(store, folder, *options) as mount:
        assert (mount.path / "a").read_bytes() == b"x" * 100_000
        (status,) = json.loads(done("status", mount.path, "--json"))
        assert status["options"] == ["--allow-delete", "--attributes ignore"]
        assert status["log_directory"] == str(folder / "log")
        rates = status["rates"]
        text = (Path(__file__).parents[2] / "docs" / "mount-s3ctl.md").read_text()
        assert [name for name in rates if f"`{name}`" not in text] == []
        assert rates["read_bytes_per_s"] * rates["over_s"] == pytest.approx(100_000)
        assert rates["requests_per_s"] > 0

        numbers = stats(mount)
        inner = {f"meters.{name}" for name in numbers.pop("meters")}
        assert set(numbers) | inner == documented("stats")
        assert numbers["counters"]["bytes_fetched"] == 100_000
        assert set(numbers["status"]) | {"answers"} == documented("status")

        assert errno_of(lambda: os.rename(mount.path / "a", mount.path / "b")) is not None
        line = json.loads(done("log", mount.path, "--json").splitlines()[-1])
        assert set(line) == documented("log")
        assert line["level"] == "warning"
        assert line["fields"]["operation"] == "rename"

        forgotten = json.loads(done("refresh", mount.path, "a", "--json"))
        assert set(forgotten) == documented("refresh")
        assert forgotten["path"] == "a"

        refused = ctl("refresh", mount.path, "nothing", "--json")
        assert (refused.returncode, refused.stdout) == (1, "")
        error = json.loads(refused.stderr)
        assert error["exit_code"] == 1
        assert "'nothing' does not exist" in error["error"]
        assert error["hint"]

        where = [store.bucket, "--endpoint-url", store.endpoint_url, "--force-path-style"]
        where += ["--region", "us-east-1", "--journals", str(folder)]
        found = json.loads(done("cleanup", *where, "--json", **store.environment))
        assert set(found) == documented("cleanup")

        gone = json.loads(done("unmount", mount.path, "--json"))
        assert gone == {"directory": str(mount.path), "unmounted": True}
        assert set(gone) == documented("unmount")


def test_status_tells_of_mounts_that_do_not_answer(store: Store, folder: Path) -> None:
    """A mount whose process was killed is listed as such, and its socket is removed."""
    with mounted(store, folder, "--no-keep-alive") as mount:
        path = own_socket(mount)
        os.kill(mount.pid, signal.SIGKILL)
        eventually(mount.has_ended)
        lines = [line for line in done("status").splitlines() if str(mount.path) in line]
        assert lines == [f"{mount.path} does not answer"]
        dead = [each for each in json.loads(done("status", "--json")) if not each["answers"]]
        assert {"directory": str(mount.path), "answers": False} in dead
        assert not path.exists()
        refused = ctl("stats", mount.path, "--once")
        assert refused.returncode == 1
        assert "does not answer" in refused.stderr
        assert "mount-s3ctl unmount" in refused.stderr


def test_stats_are_exact(store: Store, folder: Path) -> None:
    """Bytes, operations, requests, and the program that caused them are exact."""
    store.put("ctl/stats/file", b"x" * 5000)
    with mounted(store, folder, "--prefix", "ctl/stats/") as mount:
        before = stats(mount)
        subprocess.run(["dd", f"if={mount.path}/file", "of=/dev/null", "status=none"], check=True)
        script = "open('new', 'wb').write(b'y' * 70); print(1)"
        with program(mount, script):
            pass
        assert errno_of(lambda: os.stat(mount.path / "absent")) is not None
        now = stats(mount)
    meters = now["meters"]
    assert now["counters"]["bytes_fetched"] - before["counters"]["bytes_fetched"] == 5000
    assert meters["read_bytes"]["total"] == 5000
    assert meters["written_bytes"]["total"] == 70
    assert meters["requests"]["GetObject"]["us"]["count"] == 1
    assert meters["requests"]["GetObject"]["first_byte_us"]["count"] == 1
    assert meters["requests"]["PutObject"]["us"]["count"] == 1
    assert meters["operations"]["open"]["us"]["count"] == 1
    assert meters["operations"]["lookup"]["failures"] >= 1
    assert meters["operations"]["read"]["failures"] == 0
    assert meters["programs"]["dd"]["bytes_read"] == 5000
    assert meters["programs"]["dd"]["requests"]["GetObject"] == 1
    python = Path(sys.executable).name[:15]
    assert meters["programs"][python]["bytes_written"] == 70
    assert meters["programs"][python]["requests"]["PutObject"] == 1


def test_stats_as_a_table(store: Store, folder: Path) -> None:
    """Once, or repeatedly; with the region's prices, or with given ones."""
    store.put("ctl/table/file", b"x" * 5000)
    with mounted(store, folder, "--prefix", "ctl/table/") as mount:
        (mount.path / "file").read_bytes()
        text = done("stats", mount.path, "--once")
        rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
        assert rows["GetObject"][-1] == "0"
        (fetched,) = [line for line in text.splitlines() if line.startswith("fetched from S3")]
        assert [word for word in fetched.split() if word.isdigit()][-1] == "5"
        assert "$" not in text  # there are no known prices for other stores than AWS's
        priced = done("stats", mount.path, "--once", "--prices", "5000", "1000")
        requests = stats(mount)["meters"]["requests"]
        lists = requests["ListObjectsV2"]["us"]["count"]
        assert f"requests so far ${5 * lists + 1:.2f} (prices: given)" in priced
        live = subprocess.Popen(
            [CTL, "stats", mount.path, "-i", "0.1"], stdout=subprocess.PIPE, text=True
        )
        assert live.stdout is not None
        seen = [line for line, _ in zip(live.stdout, range(60), strict=False)]
        live.send_signal(signal.SIGINT)
        live.communicate(timeout=TIMEOUT_S)
        assert sum(line.startswith("read by programs") for line in seen) >= 2
        assert live.returncode == 0


def test_the_log_is_there_wherever_it_goes(store: Store, mount: Mount) -> None:
    """The last lines, and those that come while it is followed."""
    store.put("ctl/log/file", b"x")
    assert errno_of((mount.path / "ctl/log/file").unlink) is not None
    line = done("log", mount.path).splitlines()[-1]
    assert "operation=unlink" in line
    assert line in mount.log
    assert done("log", mount.path, "-n", "0") == ""
    command = [str(CTL), "log", str(mount.path), "-n", "1", "-f"]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert follower.stdout is not None
        assert follower.stdout.readline() == line + "\n"
        assert errno_of(lambda: os.rename(mount.path / "ctl/log/file", mount.path / "other"))
        assert any("operation=rename" in line for line in follower.stdout)
        follower.send_signal(signal.SIGINT)
        assert follower.wait(TIMEOUT_S) == 0
    finally:
        follower.kill()
        follower.communicate()


@pytest.fixture(scope="module")
def remembering(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that never asks again by itself."""
    options = ("--prefix", "ctl/refresh/", "--metadata-ttl", "indefinite", "--debug")
    with mounted(store, tmp_path_factory.mktemp("remembering"), *options) as it:
        yield it


def test_refresh_forgets_names(store: Store, remembering: Mount) -> None:
    """With a ttl without end: what others have changed is seen when it is told, and not before."""
    for name in ("a/changed", "a/deleted", "a/kept", "b/changed"):
        store.put(f"ctl/refresh/{name}", b"old")
    mount = remembering
    assert sorted(os.listdir(mount.path / "a")) == ["changed", "deleted", "kept"]
    for place in ("a/changed", "a/deleted", "a/kept", "b/changed"):
        assert (mount.path / place).read_bytes() == b"old"
    assert not (mount.path / "a" / "made").exists()
    store.put("ctl/refresh/a/changed", b"newer")
    store.put("ctl/refresh/b/changed", b"newer")
    store.put("ctl/refresh/a/made", b"newer")
    store.client().delete_object(Bucket=store.bucket, Key="ctl/refresh/a/deleted")
    assert (mount.path / "a" / "changed").stat().st_size == 3
    assert (mount.path / "a" / "deleted").exists()

    held = (mount.path / "a" / "kept").open("rb")
    told = done("refresh", mount.path, "a")
    assert told.startswith("forgotten: ")
    assert (mount.path / "a" / "changed").read_bytes() == b"newer"
    assert not (mount.path / "a" / "deleted").exists()
    # The kernel's own belief that a name is absent ends after a second.
    eventually(lambda: (mount.path / "a" / "made").exists())
    assert sorted(os.listdir(mount.path / "a")) == ["changed", "kept", "made"]
    assert held.read() == b"old"
    held.close()
    assert (mount.path / "b" / "changed").read_bytes() == b"old"  # that was not asked for

    store.put("ctl/refresh/new/below/file", b"new")  # nothing is known of it, but it is there
    assert done("refresh", mount.path, "new/below") == (
        f"forgotten: 0 names at or below {mount.path}/new/below\n"
    )
    assert (mount.path / "new" / "below" / "file").read_bytes() == b"new"

    refused = ctl("refresh", mount.path, "nothing/")
    assert refused.returncode == 1
    assert f"'nothing' does not exist in the mount at '{mount.path}'" in refused.stderr
    assert ctl("refresh", mount.path / "a" / "kept" / "x").returncode == 1

    store.client().delete_object(Bucket=store.bucket, Key="ctl/refresh/a/kept")
    assert done("refresh", mount.path, "a/kept").startswith("forgotten: 1 name ")

    done("refresh", mount.path / "b" / "changed")
    assert (mount.path / "b" / "changed").read_bytes() == b"newer"
    assert int(done("refresh", mount.path).split()[1]) >= 4


def test_refresh_asks_again_for_that_alone(store: Store, remembering: Mount) -> None:
    """What was not to be forgotten is served without a request."""
    for name in ("a/1", "b/1"):
        store.put(f"ctl/refresh/asks/{name}", b"x")
    mount, asks = remembering, remembering.path / "asks"
    for name in ("a", "b"):
        assert os.listdir(asks / name) == ["1"]
        os.stat(asks / name / "1")
    before = mount.counters()
    done("refresh", mount.path, "asks/a")
    os.stat(asks / "b" / "1")
    assert mount.counters()["lists"] == before["lists"]
    os.stat(asks / "a" / "1")
    assert mount.counters()["lists"] > before["lists"]


@pytest.mark.parametrize("arguments", [["refresh"], ["stats", "--once"], ["log"], ["unmount"]])
def test_commands_without_a_mount(tmp_path: Path, arguments: list[str]) -> None:
    """Says that nothing is mounted, with exit code 1."""
    refused = ctl(arguments[0], tmp_path, *arguments[1:])
    assert refused.returncode == 1
    assert f"you have no mount at '{tmp_path}'" in refused.stderr


def test_unmount(store: Store, folder: Path) -> None:
    """When the command ends, the mount, its process and its socket are gone."""
    with mounted(store, folder) as mount:
        path = own_socket(mount)
        assert done("unmount", mount.path) == f"{mount.path} is unmounted\n"
        assert not is_mounted(mount.path)
        assert mount.has_ended()
        assert not path.exists()


def test_unmount_waits_for_uploads(store: Store, folder: Path) -> None:
    """A file that is being written is uploaded completely, and then the mount ends."""
    script = """
import sys
file = open("wait", "wb")
file.write(b"x" * 10_000_000)
print("written", flush=True)
sys.stdin.readline()
file.write(b"y" * 10_000_000)
file.close()
"""
    with (
        mounted(store, folder, "--prefix", "ctl/unmount/") as mount,
        program(mount, script) as writer,
    ):
        with terminal(60) as screen:
            waiting = screen.run([CTL, "unmount", mount.path], environment({}))
            screen.until(lambda text: "Waiting for /wait" in text)
            assert len(screen.lines) == 1, screen.text
            assert waiting.poll() is None
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
            assert screen.wait(waiting, TIMEOUT_S) == 0
            assert "100 %" in screen.lines[0]
            # Without spaces: the line may break at one.
            said = "".join(screen.lines[1:]).replace(" ", "")
            assert said == f"{mount.path}isunmounted"
        assert not is_mounted(mount.path)
    assert content(store, "ctl/unmount/wait") == b"x" * 10_000_000 + b"y" * 10_000_000


def test_unmount_does_not_wait_for_ever(mount: Mount) -> None:
    """After --timeout it says which file is still written, and the mount goes on."""
    script = "f = open('slow', 'wb', 0); f.write(b'x' * 10); print(1); input(); f.close()"
    with program(mount, script):
        refused = ctl("unmount", mount.path, "--timeout", "1")
        assert refused.returncode == 1
        assert "is still being written to: /slow (10 B)" in refused.stderr
        assert is_mounted(mount.path)


def test_unmount_names_programs_that_use_it(mount: Mount) -> None:
    """A program that stands in it, or reads, is not waited for, but named."""
    with program(mount, "print(1); input()") as user:
        refused = ctl("unmount", mount.path)
        assert refused.returncode == 1
        assert re.search(rf"busy; it is used by .*\({user.pid}\)", refused.stderr)
        assert is_mounted(mount.path)


def test_unmount_removes_a_dead_mount(store: Store, folder: Path) -> None:
    """A mount whose process was killed is removed, although a program stands in it."""
    with (
        mounted(store, folder, "--no-keep-alive") as mount,
        program(mount, "print(1); input()"),
    ):
        os.kill(mount.pid, signal.SIGKILL)
        eventually(mount.has_ended)
        assert errno_of(lambda: os.listdir(mount.path)) is not None
        done("unmount", mount.path)
        assert os.listdir(mount.path) == []


def test_a_directory_in_a_mount_is_none(store: Store, mount: Mount) -> None:
    """What is to be unmounted is named."""
    store.put("ctl/inside/file", b"x")
    refused = ctl("unmount", mount.path / "ctl")
    assert refused.returncode == 1
    assert f"unmount '{mount.path}'" in refused.stderr


def test_only_the_owner_can_open_the_socket(mount: Mount) -> None:
    """Its directory is its owner's alone; and where that is opened, the mount answers nobody."""
    path = own_socket(mount)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    asking = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10)\n"
        "os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
        "s.connect(sys.argv[1])\n"
    )
    nobody = str(pwd.getpwnam("nobody").pw_uid)
    refused = subprocess.run(
        [sys.executable, "-c", asking, path, nobody], capture_output=True, check=False
    )
    assert b"PermissionError" in refused.stderr
    # Who is connected already, as root, and is somebody else by then: the kernel tells the
    # mount who has connected.
    assert ask(path, "status")["pid"] == mount.pid


def test_the_socket_answers_others_nothing(mount: Mount, public_path: Path) -> None:
    """Even where anybody can open it."""
    path = own_socket(mount)
    os.link(path, public_path / "socket")
    os.chmod(public_path / "socket", 0o666)
    asking = (
        "import os, socket, sys\n"
        "os.chdir(sys.argv[1])\n"
        "os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10)\n"
        "s.connect('socket')\n"
        's.sendall(b\'{"command": "status"}\\n\')\n'
        "print(s.recv(100))\n"
    )
    nobody = str(pwd.getpwnam("nobody").pw_uid)
    told = subprocess.run(
        [sys.executable, "-c", asking, public_path, nobody],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.stdout, told.returncode) in (("b''\n", 0), ("", 1)), told.stderr
    assert "PermissionError" not in told.stderr
    assert ask(path, "status")["pid"] == mount.pid


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nonsense\n",
        b"[]\n",
        b'{"command": "end"}\n',
        b'{"command": ["status"]}\n',
        b"x" * 200_000,
    ],
)
def test_invalid_commands_are_refused(store: Store, mount: Mount, line: bytes) -> None:
    """The message says what is valid, and the mount answers the next command."""
    path = own_socket(mount)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
            assert b'"error"' in answer
            assert b"refresh" in answer
    assert ask(path, "status")["pid"] == mount.pid


def test_silent_clients_are_dropped(store: Store, mount: Mount) -> None:
    """A client that connects and sends nothing is dropped after a few seconds."""
    path = own_socket(mount)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        assert ask(path, "status")["pid"] == mount.pid


def test_no_secret_is_sent(store: Store, mount: Mount) -> None:
    """No answer contains a key."""
    path = own_socket(mount)
    answers = [
        ask(path, "status"),
        ask(path, "stats"),
        ask(path, "log"),
        ask(path, "refresh", path=""),
    ]
    text = json.dumps(answers)
    assert store.environment["AWS_SECRET_ACCESS_KEY"] not in text
    assert store.environment["AWS_ACCESS_KEY_ID"] not in text


def test_a_mount_without_a_socket_mounts(store: Store, folder: Path) -> None:
    """If the socket cannot be created, the log says so, and everything else works."""
    (folder / "file").write_text("no directory")
    store.put("ctl/none", b"x")
    script = """
import os, sys
os.geteuid = lambda: 12345
from mountpoint.mount.control import Control, socket_directory
from pathlib import Path
print(socket_directory({"XDG_STATE_HOME": sys.argv[1]}))
control = Control(Path(sys.argv[1]) / "below", {})
control.close()
"""
    told = subprocess.run(
        [sys.executable, "-c", script, folder / "file"], capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines()[0] == f"{folder}/file/mount-s3/control"
    assert "no control socket" in told.stdout + told.stderr


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    """An address has at most 107 bytes (unix(7)), and home directories may be longer."""
    from mountpoint.mount.control import Control

    directory = tmp_path.joinpath(*["a-directory-with-a-long-name"] * 6)
    control = Control(directory, {"echo": lambda request: {"told": request["word"]}})
    try:
        (path,) = directory.glob(f"*{SUFFIX}")
        assert len(str(path)) > 150
        assert ask(path, "echo", word="hello") == {"told": "hello"}
    finally:
        control.close()
    assert not path.exists()
