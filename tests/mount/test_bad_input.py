"""What is wrong is said in one or two lines, with exit code 1, and nothing is mounted.

What `--check` says too is in `test_check`.
"""

import contextlib
import http.server
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy, refuse
from tests.mount.mounting import (
    PROGRAM,
    clean_up,
    environment,
    mounted,
    run,
    store_options,
)
from tools.mounting import is_mounted, mount_processes

pytestmark = pytest.mark.mount


@pytest.fixture
def path(folder: Path) -> Iterator[Path]:
    """An empty directory to mount on. The test leaves no mount there."""
    path = folder / "mnt"
    path.mkdir()
    yield path
    assert not is_mounted(path)
    assert not mount_processes(path)
    clean_up(path)


def check_refused(*arguments: str | Path, env: dict[str, str], says: Sequence[str]) -> str:
    """Run mount-s3; check that it ends with 1 and one or two lines that say all of `says`."""
    result = run(*arguments, env=env)
    assert result.returncode == 1, result
    assert result.stdout == ""
    assert 1 <= len(result.stderr.splitlines()) <= 2, result.stderr
    assert result.stderr.startswith("Error: ")
    for words in says:
        assert words in result.stderr, result.stderr
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert not env.get(name) or env[name] not in result.stderr
    return result.stderr


def test_directory_missing(store: Store, folder: Path) -> None:
    """The message names a missing directory, and the command that makes it."""
    path = folder / "missing"
    arguments: list[str | Path] = [store.bucket, path, *store_options(store)]
    check_refused(*arguments, env=store.environment, says=[str(path), "does not exist", "mkdir"])


def test_not_a_directory(store: Store, folder: Path) -> None:
    """A file is not a directory."""
    path = folder / "file"
    path.write_text("x")
    arguments: list[str | Path] = [store.bucket, path, *store_options(store)]
    check_refused(*arguments, env=store.environment, says=[str(path), "not a directory"])


def test_unsigned_is_refused(store: Store, path: Path) -> None:
    """--no-sign-request is refused for a private bucket."""
    arguments: list[str | Path] = [store.bucket, path, "--no-sign-request", *store_options(store)]
    check_refused(*arguments, env=store.environment, says=["denied"])


def test_expired_credentials(store: Store, path: Path) -> None:
    """If S3 says that credentials have expired, the message says to renew them."""
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(refuse(400, "ExpiredToken"))
        arguments: list[str | Path] = [
            store.bucket,
            path,
            *store_options(store, endpoint_url=proxy.url),
        ]
        check_refused(*arguments, env=store.environment, says=["credentials", "ExpiredToken"])


def test_clock(store: Store, path: Path) -> None:
    """If the clock is wrong, the message says so."""
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(refuse(403, "RequestTimeTooSkewed"))
        arguments: list[str | Path] = [
            store.bucket,
            path,
            *store_options(store, endpoint_url=proxy.url),
        ]
        check_refused(*arguments, env=store.environment, says=["clock"])


def elsewhere(exchange: Exchange) -> None:
    """Answer as S3 does to a request in the wrong region."""
    exchange.refuse(301, "PermanentRedirect")
    exchange.headers += [
        ("x-amz-bucket-region", "eu-west-3"),
        ("Location", "http://192.0.2.1/steal-the-signature"),
    ]


def test_wrong_region(store: Store, path: Path) -> None:
    """A wrong --region: the message names the right one, which is not used automatically."""
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(elsewhere)
        arguments: list[str | Path] = [
            store.bucket,
            path,
            *store_options(store, endpoint_url=proxy.url),
        ]
        check_refused(
            *arguments, env=store.environment, says=["eu-west-3", "us-east-1", "--region"]
        )
        assert len(proxy.seen) == 1


def test_region_from_the_bucket(store: Store, folder: Path) -> None:
    """If the region was only a default, mount-s3 uses the region that the bucket names.

    Credentials go only to the same endpoint, never to the host in Location.
    """
    regions = []

    def once(exchange: Exchange) -> None:
        regions.append(exchange.request_headers["Authorization"].split("/")[2])
        if regions[-1] == "us-west-2":
            elsewhere(exchange)

    path = folder / "mnt"
    path.mkdir()
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(once)
        where = ["--endpoint-url", proxy.url, "--force-path-style"]
        env = store.environment | {"AWS_REGION": "us-west-2"}
        try:
            result = run(store.bucket, path, *where, env=env)
            assert result.returncode == 0, result.stderr
            assert regions[:2] == ["us-west-2", "eu-west-3"]
            assert is_mounted(path)
        finally:
            clean_up(path)


def test_region_that_is_none(store: Store, path: Path) -> None:
    """A region that a server names is used only if it is well-formed."""

    def strange(exchange: Exchange) -> None:
        exchange.refuse(301, "PermanentRedirect")
        exchange.headers.append(("x-amz-bucket-region", "evil.example.com/"))

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(strange)
        where = ["--endpoint-url", proxy.url, "--force-path-style"]
        said = check_refused(store.bucket, path, *where, env=store.environment, says=["--region"])
        assert "evil" not in said


def test_endpoint_refuses_connections(store: Store, path: Path) -> None:
    """No server listens at the endpoint."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        arguments: list[str | Path] = [store.bucket, path, *store_options(store, endpoint_url=url)]
        check_refused(
            *arguments, env=store.environment, says=["no answer", url[7:], "--endpoint-url"]
        )


def test_endpoint_unknown(store: Store, path: Path) -> None:
    """The endpoint's name does not resolve."""
    url = "http://no-such-host.invalid"
    arguments: list[str | Path] = [store.bucket, path, *store_options(store, endpoint_url=url)]
    check_refused(*arguments, env=store.environment, says=["no answer", "no-such-host.invalid"])


class _Page(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        body = b"<html><body>It works!</body></html>"
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("status", [200, 404])
def test_endpoint_is_not_s3(store: Store, path: Path, status: int) -> None:
    """A web server is not mistaken for S3."""
    handler = type("Page", (_Page,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        arguments: list[str | Path] = [store.bucket, path, *store_options(store, endpoint_url=url)]
        check_refused(*arguments, env=store.environment, says=["like S3", "--endpoint-url"])
        server.shutdown()


def test_plain_http_where_tls_is_asked(store: Store, path: Path) -> None:
    """https to a server without TLS fails, and mount-s3 never tries http instead."""
    url = store.endpoint_url.replace("http:", "https:")
    arguments: list[str | Path] = [store.bucket, path, *store_options(store, endpoint_url=url)]
    check_refused(*arguments, env=store.environment, says=["no answer", url[8:]])


#: A contradiction, and a value that is looked at: `tests/unit/cli/test_main.py` has the others.
OPTIONS = {
    "prefix of URI": (["s3://bucket/part/", "--prefix", "a/"], ["--prefix"]),
    "CA bundle": (["bucket", "--ca-bundle", "/no/such/file"], ["/no/such/file", "--ca-bundle"]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(path: Path, name: str) -> None:
    """Values out of range and contradictions are said before anything is asked of S3."""
    (bucket, *options), says = OPTIONS[name]
    check_refused(bucket, path, *options, env={}, says=says)


def in_namespace(script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a shell script in its own mount namespace."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script],
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root has mount namespaces")
def test_no_device(store: Store, path: Path) -> None:
    """Without /dev/fuse the message says how to get it."""
    where = " ".join(store_options(store))
    result = in_namespace(
        f"""
        mount -t tmpfs none /dev
        mknod /dev/null c 1 3; mknod /dev/urandom c 1 9; mknod /dev/random c 1 8
        exec {PROGRAM} {store.bucket} {path} {where}
        """,
        store.environment,
    )
    assert result.returncode == 1
    assert "there is no /dev/fuse" in result.stderr
    assert "modprobe fuse" in result.stderr


def test_no_fusermount(store: Store, path: Path, folder: Path) -> None:
    """--auto-unmount without fusermount: the message says what to install."""
    (folder / "empty").mkdir()
    env = environment(store.environment) | {"PATH": str(folder / "empty")}
    result = subprocess.run(
        [PROGRAM, store.bucket, path, "--auto-unmount", *store_options(store)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "fusermount is missing" in result.stderr
    assert "apt install fuse" in result.stderr


def test_secrets_stay_secret(store: Store, folder: Path) -> None:
    """No secret is in the log at any level, nor in the daemon's command line."""
    env = store.environment | {"AWS_SESSION_TOKEN": ""}
    with mounted(store, folder, "--debug", "--debug-crt") as mount:
        with contextlib.suppress(OSError):
            list(mount.path.iterdir())
        log = mount.log
        command_line = Path(f"/proc/{mount.pid}/cmdline").read_bytes().decode()
    assert "awscrt" in log, "the CRT's log is missing: the test proves nothing"
    for secret in (env["AWS_SECRET_ACCESS_KEY"], "Signature=" + "0"):
        assert secret not in log
        assert secret not in command_line
    assert log.count("Signature=") == log.count("Signature=[redacted]") + log.count("Signature=***")
