"""No secret of the signatures leaks, whatever happens to a mount.

For each source of keys the tests search all output: files, terminal output, command lines, answers
of the control socket, and crash reports.
"""

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mountpoint.mount.control import SUFFIX, ask, socket_directory
from tests.conftest import Store
from tests.faulty_proxy import refuse, times
from tests.forward_proxy import ForwardProxy
from tests.mount.mounting import (
    PROGRAM,
    clean_up,
    environment,
    errno_of,
    eventually,
    foreground,
    store_options,
)
from tests.mount.ways import WAYS, Place, place
from tools import mounting

pytestmark = pytest.mark.mount

PROXY_PASSWORD = "pr0xy-pass-6Kw2Zn"
EVERYTHING = "trace,awscrt=trace,botocore=trace,urllib3=trace"
#: Search for parts of secrets, because a log may cut or encode them.
PIECE = 14


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForwardProxy]:
    with ForwardProxy(tmp_path_factory.mktemp("proxy"), f"user:{PROXY_PASSWORD}") as it:
        yield it


def by_variables(it: Place) -> dict[str, str]:
    keys = it.keys.issue()
    return {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.token,
    }


def by_file(it: Place, folder: Path) -> dict[str, str]:
    keys = it.keys.issue()
    file = folder / "file"
    file.write_text(
        f"[default]\naws_access_key_id = {keys.access_key}\n"
        f"aws_secret_access_key = {keys.secret_key}\naws_session_token = {keys.token}\n"
    )
    return {"AWS_SHARED_CREDENTIALS_FILE": str(file)}


def found(secrets: list[str], text: str) -> list[str]:
    """Return the secrets that a text contains in part."""
    pieces = {secret[at : at + PIECE] for secret in secrets for at in (0, len(secret) - PIECE)}
    return sorted(piece for piece in pieces if piece in text)


def command_lines() -> str:
    """Return the command lines of all processes but the proxy, which is told its password."""
    texts = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            texts.append(path.read_bytes().decode("utf-8", "replace"))
        except OSError:  # the process has ended
            continue
    return "\n".join(text for text in texts if "--basic-auth" not in text)


def memory_files(pid: int) -> str:
    """Return the content of the files in memory that a process has open."""
    text = ""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # a connection that was closed
            if os.readlink(link).startswith("/memfd:"):
                text += link.read_bytes().decode("latin-1")
    return text


def told(pid: int) -> str:
    """Return the answers of the mount's socket."""
    (path,) = socket_directory(os.environ).glob(f"{pid}-*{SUFFIX}")
    answers = [ask(path, "log"), ask(path, "stats"), ask(path, "status")]
    return json.dumps(answers)


@contextmanager
def running(it: Place, folder: Path, environ: dict[str, str], *more: str) -> Iterator[Path]:
    """Mount in the background and log everything; yield the directory. Output goes to a file."""
    path = folder / "mnt"
    path.mkdir()
    options = [*store_options(it.there, endpoint_url=it.url), "--debug", "--debug-crt"]
    options += ["--log-directory", str(folder / "log"), *more]
    with (folder / "output").open("wb") as output:
        done = subprocess.run(
            [PROGRAM, it.there.bucket, path, *options],
            env=environment(it.there.environment | environ | {"MOUNTPOINT_LOG": EVERYTHING}),
            stdout=output,
            stderr=output,
            timeout=60,
            check=False,
        )
    try:
        assert done.returncode == 0, (folder / "output").read_text()
        yield path
    finally:
        clean_up(path)


@pytest.mark.parametrize("way", [*WAYS, "variables", "file"])
def test_secrets_are_not_shown(store: Store, folder: Path, proxy: ForwardProxy, way: str) -> None:
    """Reads, writes, refusals, faults, renewal, counters, and the end of the process."""
    store.put(f"secrets/{way}/file", b"content")
    with place(store, folder, way if way in WAYS else "container") as it:
        environ = {"HTTP_PROXY": f"http://user:{PROXY_PASSWORD}@127.0.0.1:{proxy.port}"}
        if way == "variables":
            environ |= by_variables(it)
        elif way == "file":
            environ |= by_file(it, folder)
        with running(it, folder, environ, "--no-keep-alive") as path:
            pid = mounting.serving_process(path)
            seen = command_lines()
            here = path / "secrets" / way
            file = here / "file"
            assert file.read_bytes() == b"content"
            (here / "new").write_bytes(b"written")
            assert errno_of(file.unlink) is not None
            assert errno_of((here / "missing").read_bytes) is not None
            it.proxy.faults.append(times(3, refuse(503, "SlowDown")))
            (here / "more").write_bytes(b"x" * 100_000)
            it.proxy.faults.append(times(3, refuse(403, "SignatureDoesNotMatch")))
            assert errno_of(file.read_bytes) == errno.EACCES
            secrets = [*it.secrets, PROXY_PASSWORD]
            if way in ("process", "SSO"):  # it checks only every ten seconds
                it.proxy.faults.clear()
                it.keys.end_all()
                assert file.read_bytes() == b"content"
            os.kill(pid, signal.SIGUSR2)
            seen += command_lines() + told(pid)
            os.kill(pid, signal.SIGSEGV)
            eventually(lambda: not mounting.mount_processes(path))
        log = "".join(each.read_text(errors="replace") for each in (folder / "log").iterdir())
        output = (folder / "output").read_text()
        secrets += it.secrets
    assert "logger=botocore." in log
    assert "logger=awscrt." in log
    assert "Fatal Python error: " in log  # other threads may log before the rest of the line
    assert found(secrets, log) == []
    assert found(secrets, output) == []
    assert found(secrets, seen) == []
    # Signatures are valid for a quarter of an hour.
    assert not re.search(r"Signature=[0-9a-f]{64}", log)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look")
def test_the_keeper_is_told_none(store: Store, folder: Path) -> None:
    """Neither its command line nor the memory that it holds for the next worker has secrets."""
    store.put("secrets/keeper", b"content")
    with place(store, folder, "container") as it:
        environ = by_variables(it)
        with running(it, folder, environ) as path:
            assert (path / "secrets" / "keeper").read_bytes() == b"content"
            held = "".join(map(memory_files, mounting.mount_processes(path)))
            assert store.bucket in held
            assert found([*it.secrets, *environ.values()], held) == []
            assert found([*it.secrets, *environ.values()], command_lines()) == []


def test_refused_at_the_start(store: Store, folder: Path) -> None:
    """Nor does a failed mount leak secrets."""
    with place(store, folder, "container") as it:
        it.service.token = "another"
        environ = it.there.environment | {"MOUNTPOINT_LOG": EVERYTHING}
        done = subprocess.run(
            [PROGRAM, store.bucket, folder, "--foreground", *store_options(store)],
            env=environment(environ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert "could not be obtained" in done.stderr
        assert found(it.secrets, done.stdout + done.stderr) == []


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_checks(store: Store, folder: Path, proxy: ForwardProxy, form: list[str]) -> None:
    """The output of --check has no secret of keys or proxy."""
    with place(store, folder, "container") as it:
        environ = it.there.environment | {
            "HTTP_PROXY": f"http://user:{PROXY_PASSWORD}@127.0.0.1:{proxy.port}",
            "MOUNTPOINT_LOG": EVERYTHING,
        }
        where = store_options(store, endpoint_url=it.url)
        done = subprocess.run(
            [PROGRAM, "--check", *form, store.bucket, *where],
            env=environment(environ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "container" in done.stdout
        assert f"127.0.0.1:{proxy.port}" in done.stdout
        assert found([*it.secrets, PROXY_PASSWORD], done.stdout + done.stderr) == []


def test_no_core_file(store: Store, folder: Path) -> None:
    """No core file contains the memory, even if core files are enabled."""
    wanted = f'cd "{folder}"; ulimit -c unlimited && exec "$@"'
    before = ["sh", "-c", wanted, "sh"]
    with foreground(store, folder, "--no-keep-alive", before=before) as (program, _):
        program.send_signal(signal.SIGSEGV)
        _, status = os.waitpid(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
        assert os.WTERMSIG(status) == signal.SIGSEGV
        assert not os.WCOREDUMP(status)


@pytest.mark.parametrize(("options", "processes"), [([], 2), (["--no-keep-alive"], 1)])
def test_only_root_looks_at_it(
    store: Store, folder: Path, options: list[str], processes: int
) -> None:
    """Only root can read the environment of the process and its keeper, not even the same user."""
    # For root's own processes: the group of the file shows whether it is readable.
    before = ["setpriv", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    with foreground(store, folder, *options, before=before) as (program, path):
        assert os.stat(f"/proc/{program.pid}").st_gid != 0
        found = mounting.mount_processes(path)
        assert program.pid in found
        assert len(found) == processes
        for pid in found:
            owner = os.stat(f"/proc/{pid}/environ")
            assert (owner.st_uid, owner.st_gid) == (0, 0)
