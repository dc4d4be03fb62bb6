"""The background process; each case in its own process, because a fork of pytest proves nothing."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each starts an interpreter

HEAD = """
import os, sys, signal, time
from mountpoint.mount.daemon import run_in_background
from mountpoint.errors import MountError

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever runs the tests ignores
signal.signal(signal.SIGINT, signal.default_int_handler)

def start(work, **options):
    try:
        run_in_background(work, **options)
    except MountError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    print("up", flush=True)

def note(path, text):
    with open(path + ".new", "w") as file:
        file.write(text)
    os.rename(path + ".new", path)

"""


def command(body: str, *arguments: object) -> list[str]:
    """Return the command for a program with these arguments as sys.argv[1:]."""
    return [sys.executable, "-c", HEAD + textwrap.dedent(body), *map(str, arguments)]


def run(body: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, with pipes for its output, and return that."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command(body, *arguments), capture_output=True, text=True, timeout=60, **options
    )


def appears(path: Path) -> str:
    """Wait for a file of another process, and return its content."""
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} was never written"
        time.sleep(0.01)
    return path.read_text()


def gone(pid: int) -> bool:
    """Wait for the end of a process that init reaps, or has left as a zombie."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


SERVE = """
def work(ready):
    ready()
    note(sys.argv[1], str(os.getpid()))
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    return 0
start(work)
"""


def test_returns_when_ready_and_lets_go_of_the_callers_pipes(tmp_path: Path) -> None:
    """The caller's pipes end with the parent, while the child continues."""
    pid, stop = tmp_path / "pid", tmp_path / "stop"
    done = run(SERVE, pid, stop)
    assert (done.returncode, done.stdout, done.stderr) == (0, "up\n", "")
    child = int(appears(pid))
    os.kill(child, 0)
    stop.touch()
    assert gone(child)


def test_closes_other_descriptors_of_the_caller(tmp_path: Path) -> None:
    """A pipe that the caller passed with a higher number ends with the parent as well."""
    pid, stop = tmp_path / "pid", tmp_path / "stop"
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    done = run(SERVE, pid, stop, pass_fds=[writer])
    os.close(writer)
    assert done.returncode == 0
    child = int(appears(pid))
    assert os.read(reader, 1) == b""
    os.kill(child, 0)
    os.close(reader)
    stop.touch()
    assert gone(child)


def test_detaches(tmp_path: Path) -> None:
    """When ready, the child leads a session, is at "/", has null as 0 to 2, and keeps its umask."""
    report = tmp_path / "report"
    body = """
    def work(ready):
        ready()
        os.umask(umask := os.umask(0))
        files = [os.readlink(f"/proc/self/fd/{n}") for n in range(3)]
        note(sys.argv[1], repr((os.getsid(0) == os.getpid(), os.getcwd(), files, oct(umask))))
        return 0
    os.umask(0o027)
    os.chdir(os.path.dirname(sys.argv[1]))
    start(work)
    """
    assert run(body, report).returncode == 0
    assert appears(report) == repr((True, "/", ["/dev/null"] * 3, "0o27"))


def test_stays_in_the_callers_group_until_it_is_ready(tmp_path: Path) -> None:
    """At an automount point only systemd's own process group does not wait for the mount."""
    report = tmp_path / "report"
    body = """
    group = os.getpgrp()
    def work(ready):
        before = os.getpgrp()
        ready()
        note(sys.argv[1], repr((before == group, os.getpgrp() == os.getpid())))
        return 0
    start(work)
    """
    assert run(body, report).returncode == 0
    assert appears(report) == repr((True, True))


def test_paths_in_the_environment_survive_the_change_of_directory(tmp_path: Path) -> None:
    """Relative paths that botocore reads later become absolute; "~" is left to botocore."""
    report = tmp_path / "report"
    body = """
    def work(ready):
        ready()
        names = ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"]
        note(sys.argv[1], " ".join(os.environ[name] for name in names))
        return 0
    os.chdir(os.path.dirname(sys.argv[1]))
    start(work)
    """
    environment = {
        **os.environ,
        "AWS_CONFIG_FILE": "conf/aws",
        "AWS_SHARED_CREDENTIALS_FILE": "~/credentials",
    }
    assert run(body, report, env=environment).returncode == 0
    assert appears(report) == f"{tmp_path}/conf/aws ~/credentials"


def test_error_reaches_the_terminal() -> None:
    """What the child raises is raised in the parent, with its hint."""
    done = run(
        """
        def work(ready):
            raise MountError("no such bucket", "check the name: d\\u00e9p\\u00f4t")
        start(work)
        """
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "no such bucket\ncheck the name: dépôt\n"


def test_long_error_is_cut() -> None:
    """A message that a pipe does not take in one piece is cut, and never blocks the child."""
    done = run(
        """
        def work(ready):
            raise MountError("x" * 1_000_000)
        start(work)
        """
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "x" * 4095


def test_unexpected_error_says_where_and_names_the_log() -> None:
    """An unexpected exception becomes one line with its place, and a hint about the log."""
    done = run(
        """
        def work(ready):
            return {}["key"]
        start(work, log_hint="see the log")
        """
    )
    assert done.returncode == 1
    what, hint = done.stderr.splitlines()
    assert what.startswith("unexpected error: KeyError: 'key' (<string>:")
    assert hint == "see the log"


@pytest.mark.parametrize(
    ("death", "how"),
    [
        ("os._exit(7)", "exit status 7"),
        ("sys.exit(7)", "exit status 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
    ],
)
def test_death_without_a_word(death: str, how: str) -> None:
    """If a child dies before it is ready, its exit status or signal is reported."""
    done = run(
        f"""
        def work(ready):
            {death}
        start(work, log_hint="see the log")
        """
    )
    assert done.returncode == 1
    expected = f"the mount process ended before the mount was ready: {how}\nsee the log\n"
    assert done.stderr == expected


def test_end_before_ready_is_an_error() -> None:
    """If `work` returns before it is ready, nothing was mounted."""
    done = run("start(lambda ready: 0)")
    assert (done.returncode, done.stderr) == (1, "the mount ended before it was ready\n")


def test_ready_counts_once_and_errors_after_it_go_to_the_log_only(tmp_path: Path) -> None:
    """A second `on_ready`, or an error later, writes nothing to a descriptor of others."""
    report = tmp_path / "report"
    body = """
    def work(ready):
        ready()
        file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
        others = [os.dup(file) for _ in range(16)]
        ready()
        raise MountError("too late")
    start(work)
    """
    done = run(body, report)
    assert (done.returncode, done.stdout, done.stderr) == (0, "up\n", "")
    assert appears(report) == ""


WAIT = """
def work(ready):
    def stop(number, frame):
        note(sys.argv[1] + ".stopped", signal.Signals(number).name)
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    note(sys.argv[1], str(os.getpid()))
    while True:
        time.sleep(1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_waiting_stops_the_child(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM or SIGHUP to the parent ends the child by SIGTERM, then the parent."""
    pid = tmp_path / "pid"
    parent = subprocess.Popen(
        command(WAIT + "start(work)", pid), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    child = int(appears(pid))
    parent.send_signal(number)
    out, _ = parent.communicate(timeout=30)
    assert parent.returncode not in (0, None)
    assert out == b""
    assert appears(tmp_path / "pid.stopped") == "SIGTERM"
    assert gone(child)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_right_after_the_fork_stops_the_child(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A signal that comes before the parent handles signals is held until it does."""
    pid = tmp_path / "pid"
    signalled_fork = f"""
    fork = os.fork

    def signalled_fork():
        pid = fork()
        if pid:
            while not os.path.exists(sys.argv[1]):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.{number.name})
        return pid

    os.fork = signalled_fork
    """
    done = run(textwrap.dedent(signalled_fork) + WAIT + "start(work)", pid)
    assert done.returncode != 0
    assert appears(tmp_path / "pid.stopped") == "SIGTERM"
    assert gone(int(appears(pid)))


def test_child_that_is_never_ready_is_stopped(tmp_path: Path) -> None:
    """The parent waits for a limited time, and leaves nothing behind."""
    pid = tmp_path / "pid"
    done = run(WAIT + "start(work, timeout_s=2, log_hint='see the log')", pid)
    assert done.returncode == 1
    assert done.stderr == "the mount was not ready after 2 seconds\nsee the log\n"
    assert appears(tmp_path / "pid.stopped") == "SIGTERM"
    assert gone(int(appears(pid)))


def test_child_gives_up_when_its_parent_is_gone(tmp_path: Path) -> None:
    """Without its parent `on_ready` raises an error, and the mount ends."""
    pid, go = tmp_path / "pid", tmp_path / "go"
    body = """
    def work(ready):
        note(sys.argv[1], str(os.getpid()))
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
        try:
            ready()
        except MountError as error:
            note(sys.argv[1] + ".raised", str(error))
            raise
        return 0
    start(work)
    """
    parent = subprocess.Popen(command(body, pid, go))
    child = int(appears(pid))
    parent.kill()
    parent.wait()
    go.touch()
    assert "gone" in appears(tmp_path / "pid.raised")
    assert gone(child)


def test_closed_standard_descriptors(tmp_path: Path) -> None:
    """If the caller has closed 0 to 2, none of our files gets their numbers."""
    pid, stop = tmp_path / "pid", tmp_path / "stop"
    shell = 'exec "$@" <&- >&- 2>&-'
    arguments = command(SERVE.replace("start(work)", "run_in_background(work)"), pid, stop)
    done = subprocess.run(["/bin/sh", "-c", shell, "sh", *arguments], timeout=60, check=False)
    assert done.returncode == 0
    child = int(appears(pid))
    files = [os.readlink(f"/proc/{child}/fd/{number}") for number in range(3)]
    assert files == ["/dev/null"] * 3
    stop.touch()
    assert gone(child)


def test_buffered_output_is_not_written_twice(tmp_path: Path) -> None:
    """What the parent had printed but not yet flushed comes once."""
    done = run(
        """
        sys.stdout.write("before ")
        start(lambda ready: ready() or 0)
        """
    )
    assert done.stdout == "before up\n"
