"""`mount-s3 --check` with real servers:

it reports what mounting would report, and mounts nothing.
"""

import json
import os
import pty
import select
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme

from mountpoint.checks.command import CHECKS
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy, on_data, refuse
from tests.forward_proxy import ForwardProxy
from tests.mount.mounting import (
    PROGRAM,
    environment,
    eventually,
    mounted,
    run,
    store_options,
)
from tests.mount.test_bad_input import check_refused
from tools.mounting import is_mounted, mount_processes
from tools.servers import REGION

pytestmark = pytest.mark.mount

SAFE_S = 60.0
NAMES = [check.name for check in CHECKS]
LARGE_BYTES = 64 << 20


@pytest.fixture(scope="module")
def large(store: Store) -> Iterator[str]:
    """The prefix of an object large enough to measure, and of a small one before it."""
    prefix = "check-large/"
    store.put(f"{prefix}a.txt", b"hello")
    store.put(f"{prefix}large.bin", os.urandom(LARGE_BYTES))
    yield prefix
    store.delete(f"{prefix}large.bin")
    store.delete(f"{prefix}a.txt")


@pytest.fixture(scope="module")
def small(store: Store) -> str:
    """The prefix of a small object alone: nothing is measured, which is soon done."""
    store.put("check-little/a.txt", b"hello")
    return "check-little/"


@pytest.fixture
def path(folder: Path) -> Path:
    """An empty directory."""
    path = folder / "mnt"
    path.mkdir()
    return path


class Found:
    """The results of a run, by name."""

    def __init__(self, result: "subprocess.CompletedProcess[str]") -> None:
        self.code = result.returncode
        self.text = result.stdout + result.stderr
        self.whole: dict[str, Any] = json.loads(result.stdout)
        self.checks = {each["name"]: each for each in self.whole["checks"]}
        assert list(self.checks) == NAMES
        for each in self.checks.values():
            assert set(each) == {"name", "outcome", "finding", "hint", "details"}
            assert each["finding"]
            assert each["hint"] or each["outcome"] not in ("failed", "warning"), each
        assert self.whole["ok"] == (not self.failed)
        assert self.code == (1 if self.failed else 0)

    @property
    def failed(self) -> list[str]:
        """The names of the failed checks."""
        return [each["name"] for each in self.checks.values() if each["outcome"] == "failed"]

    def __getitem__(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.checks[name]
        return found

    def skipped_for(self, name: str) -> list[str]:
        """Return the names of the checks that were skipped because of this failure."""
        return [each["name"] for each in self.checks.values() if each["finding"] == f"needs {name}"]


def check(
    store: Store,
    *options: str | Path,
    bucket: str = "",
    endpoint_url: str | None = None,
    env: dict[str, str] | None = None,
) -> Found:
    """Run the check; return its results. The output has no secret."""
    env = store.environment if env is None else env
    where = store_options(store, endpoint_url=endpoint_url)
    found = Found(
        run(
            "--check", "--json", bucket or store.bucket, *options, *where, env=env, timeout_s=SAFE_S
        )
    )
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        assert not env.get(name) or env[name] not in found.text
    return found


def test_all_is_well(store: Store, folder: Path, path: Path, large: str) -> None:
    """All checks are ok, and nothing is mounted, written or left behind."""
    log = folder / "log"
    found = check(store, path, "--prefix", large, "--log-directory", log)
    skipped = {name for name in NAMES if found[name]["outcome"] == "skipped"}
    # As root, without options, and with an http endpoint that is an IP address.
    assert skipped - {"fusermount"} == {
        *("allow_other", "staging", "cache", "dns", "tls", "write", "cache_bucket"),
    }
    assert {found[name]["outcome"] for name in NAMES} == {"ok", "skipped"}
    assert found.whole["prefix"] == large
    assert found.whole["directory"] == str(path)
    assert found["credentials"]["details"]["provider"] == "env"
    key = store.environment["AWS_ACCESS_KEY_ID"]
    assert found["credentials"]["details"]["access_key_id"] == f"{key[:4]}…{key[-4:]}"
    assert found["region"]["details"] == {"region": REGION, "source": "option"}
    assert found["endpoint"]["details"]["style"] == "path"
    assert found["list"]["details"] == {"objects": 2, "largest_bytes": LARGE_BYTES}
    assert found["read"]["details"]["key"] == f"{large}a.txt"
    assert found["throughput"]["details"]["size_bytes"] == LARGE_BYTES
    assert found["throughput"]["details"]["mb_per_s"] > 0
    assert not is_mounted(path)
    assert not mount_processes(path)
    assert not log.exists()


def test_requests_of_a_check(store: Store, path: Path, large: str) -> None:
    """Only HEAD and GET are sent, and the large object is read once, in parallel pieces."""
    with FaultyProxy(store.endpoint_url) as proxy:
        asked: list[Exchange] = []
        proxy.faults.append(asked.append)
        found = check(store, path, "--prefix", large, endpoint_url=proxy.url)
        assert found.code == 0
        assert {exchange.method for exchange in asked} == {"HEAD", "GET"}
        unsigned = [e for e in asked if "Authorization" not in e.request_headers]
        assert [exchange.method for exchange in unsigned] == ["HEAD"]
        pieces = [e for e in asked if e.is_data and "large.bin" in e.target]
        assert len(pieces) > 4
        read_bytes = sum(len(exchange.body) for exchange in pieces)
        assert read_bytes < LARGE_BYTES * 1.5
        bytes_ = [e for e in asked if e.is_data and "a.txt" in e.target and e.status == 206]
        assert [e.body for e in bytes_] == [b"h", b"h"]  # to test If-Match, and to read


def test_without_a_directory(store: Store, small: str) -> None:
    """The bucket alone can be checked."""
    found = check(store, "--prefix", small)
    assert found.code == 0
    assert found["directory"]["outcome"] == "skipped"
    assert found.whole["directory"] is None


def test_text_is_plain_where_no_terminal_is(store: Store, path: Path, large: str) -> None:
    """Without a terminal: a line per check, hints below, no colour, no bar, nothing on stderr."""
    where = store_options(store)
    result = run("--check", store.bucket, path, "--prefix", large, *where, env=store.environment)
    assert result.returncode == 0
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    lines = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    marked = [line.split()[0] for line in lines[: len(NAMES)]]
    assert set(marked) <= {"ok", "skipped", "warning"}
    assert [line[9:23].strip().replace(" ", "_") for line in lines[: len(NAMES)]] == NAMES
    assert "can be mounted: " in lines[-1]


def test_an_output_that_is_not_unicode(store: Store, small: str) -> None:
    """What it cannot show is escaped."""
    options = ["--prefix", small, *store_options(store)]
    env = store.environment | {"PYTHONIOENCODING": "latin-1"}
    result = run("--check", store.bucket, *options, env=env)
    assert (result.returncode, result.stderr) == (0, "")
    assert rf"access key {store.environment['AWS_ACCESS_KEY_ID'][:4]}\u2026" in result.stdout


def test_on_a_terminal(store: Store, large: str) -> None:
    """A terminal gets colours, and a bar during the read."""
    master, slave = pty.openpty()
    env = environment(store.environment) | {"TERM": "xterm"}
    env.pop("NO_COLOR", None)
    program = subprocess.Popen(
        [PROGRAM, "--check", store.bucket, "--prefix", large, *store_options(store)],
        env=env,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    try:
        while select.select([master], [], [], SAFE_S)[0]:
            try:
                piece = os.read(master, 1 << 16)
            except OSError:  # EIO: the other end is closed
                break
            seen += piece
        assert program.wait(SAFE_S) == 0
    finally:
        program.kill()
        program.wait()
        os.close(master)
    assert b"\x1b[32mok" in seen
    assert b"throughput  [" in seen
    assert b"100%" in seen


def said_by_mounting(
    *arguments: str | Path, env: dict[str, str], says: Sequence[str] = ()
) -> tuple[str, str]:
    """Return what mounting says, and what it says to do."""
    said = check_refused(*arguments, env=env, says=says)
    what, _, hint = said.removeprefix("Error: ").partition("\n")
    return what, hint.strip()


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("bucket", "bucket", ["no-such-bucket-here", "does not exist"]),
        ("bucket", "AWS_SECRET_ACCESS_KEY", ["denied", "SignatureDoesNotMatch"]),
        ("bucket", "AWS_ACCESS_KEY_ID", ["cannot be used", "InvalidAccessKeyId"]),
        ("credentials", "nothing", ["credentials", "--no-sign-request"]),
        ("configuration", "profile", ["nobody", "known"]),
        ("region", "AWS_REGION", ["not/a/region"]),
        ("staging", "staging", ["missing"]),
        ("log", "log", ["log"]),
        ("write", "incremental", ["--incremental-upload"]),
    ],
)
def test_messages_are_those_of_mounting(
    store: Store, folder: Path, path: Path, name: str, wrong: str, says: list[str]
) -> None:
    """The failed check has the words of mounting, and checks that need it are skipped."""
    where = ["--endpoint-url", store.endpoint_url, "--force-path-style"]
    env = dict(store.environment)
    bucket, options = store.bucket, []
    (folder / "file").touch()
    match wrong:
        case "bucket":
            bucket = "no-such-bucket-here"
        case "AWS_SECRET_ACCESS_KEY":
            env[wrong] = "wrong" * 8
        case "AWS_ACCESS_KEY_ID":
            env[wrong] = "AKIANOBODYHASTHISKEY"
        case "nothing":
            env = {}
        case "profile":
            options = ["--profile", "nobody"]
            (folder / "config").write_text("[profile known]\nregion = us-east-1\n")
            env = {"AWS_CONFIG_FILE": str(folder / "config")}
        case "AWS_REGION":
            env[wrong] = "not/a/region"
        case "staging":
            options = ["--staged-writes", str(folder / "missing")]
        case "log":
            options = ["--log-directory", str(folder / "file")]
        case "incremental":
            options = ["--incremental-upload"]
    arguments: list[str | Path] = [bucket, path, *where, *options]
    found = Found(run("--check", "--json", *arguments, env=env))
    assert found.failed == [name]
    said = said_by_mounting(*arguments, env=env, says=says)
    assert (found[name]["finding"], found[name]["hint"]) == said
    skipped = found.skipped_for(name)
    assert ("throughput" in skipped) == (name not in ("staging", "log", "write"))
    assert not is_mounted(path)


def test_connection_refused(store: Store) -> None:
    """The connection check fails, and the checks that need it name it."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        found = check(store, endpoint_url=f"http://{host}")
    assert found.failed == ["connection"]
    assert found["connection"]["finding"] == f"no answer from {host} (Connection refused)"
    expected = ["tls", "clock", "bucket", "list", "read", "write", "cache_bucket"]
    assert found.skipped_for("connection") == [*expected, "throughput"]


def test_the_name_does_not_resolve(store: Store) -> None:
    """The name check fails."""
    found = check(store, endpoint_url="http://no-such-host.invalid")
    assert found.failed == ["dns"]
    assert "no answer from no-such-host.invalid" in found["dns"]["finding"]


def test_the_endpoint_is_silent(store: Store, path: Path) -> None:
    """It accepts and never answers: both say that within 30 seconds, and wait no longer."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        ThreadPoolExecutor(1) as pool,
    ):
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        where: list[str | Path] = [store.bucket, path, *store_options(store, endpoint_url=url)]
        mounting = pool.submit(run, *where, env=store.environment, timeout_s=30)
        found = check(store, endpoint_url=url)
        result = mounting.result()
    assert found.failed == ["bucket"]
    assert "no answer" in found["bucket"]["finding"]
    assert found["clock"]["outcome"] == "skipped"
    assert result.returncode == 1
    assert "no answer" in result.stderr


@pytest.mark.parametrize("trusted", [False, True])
def test_tls(store: Store, folder: Path, small: str, trusted: bool) -> None:
    """A certificate that is not trusted fails before any key is sent; one that is tells its TLS."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    options = ["--prefix", small]
    options += ["--ca-bundle", str(folder / "ca.pem")] if trusted else []
    with FaultyProxy(store.endpoint_url, context) as proxy:
        found = check(store, *options, endpoint_url=proxy.url)
        if trusted:
            assert found.code == 0
            assert found["tls"]["details"]["version"].startswith("TLSv1.")
        else:
            assert found.failed == ["tls"]
            assert "its TLS certificate is not trusted" in found["tls"]["finding"]
            assert "--ca-bundle" in found["tls"]["hint"]
            assert proxy.seen == []


def test_no_tls_where_it_is_asked_for(store: Store) -> None:
    """The endpoint is https, but the server has no TLS."""
    found = check(store, endpoint_url=store.endpoint_url.replace("http:", "https:"))
    assert found.failed == ["tls"]
    assert "is it https?" in found["tls"]["hint"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_through_a_proxy(store: Store, folder: Path, small: str, scheme: str) -> None:
    """Each step goes where the requests go; only the proxy is reached directly."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    options = ["--prefix", small, "--ca-bundle", str(folder / "ca.pem")]
    tls = context if scheme == "https" else None
    login = "me:pw1-secret"
    with (
        FaultyProxy(store.endpoint_url, tls) as server,
        ForwardProxy(folder / "proxy", login) as proxy,
    ):
        url = proxy.url.replace("//", f"//{login}@")
        env = store.environment | {f"{scheme.upper()}_PROXY": url}
        found = check(store, *options, endpoint_url=server.url, env=env)
        assert found.code == 0, found.text
        assert "pw1" not in found.text
        assert found["endpoint"]["details"]["proxy"] == proxy.url
        assert found["connection"]["details"]["address"] == f"127.0.0.1:{proxy.port}"
        assert found["tls"]["outcome"] == ("ok" if scheme == "https" else "skipped")
        assert found["clock"]["outcome"] == "ok"
        assert server.url.partition("//")[2] in proxy.log


def test_a_proxy_that_is_not_there(store: Store) -> None:
    """The message names the proxy as the one that does not answer."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        found = check(store, env=store.environment | {"HTTP_PROXY": f"http://{host}"})
    assert found.failed == ["connection"]
    assert f"(Connection refused by the proxy http://{host})" in found["connection"]["finding"]


def test_the_directory_is_missing(store: Store, folder: Path) -> None:
    """The bucket is checked nevertheless."""
    path = folder / "missing"
    found = check(store, path)
    assert found.failed == ["directory"]
    what, hint = said_by_mounting(store.bucket, path, *store_options(store), env=store.environment)
    assert (found["directory"]["finding"], found["directory"]["hint"]) == (what, hint)
    assert found["bucket"]["outcome"] == "ok"


def test_already_mounted(store: Store, folder: Path) -> None:
    """A living mount is reported, and a dead one, which mounting removes. Neither is touched."""
    with mounted(store, folder, "--no-keep-alive") as mount:
        found = check(store, mount.path)
        assert found.failed == ["directory"]
        assert "already a mount point" in found["directory"]["finding"]
        os.kill(mount.pid, signal.SIGKILL)
        eventually(mount.has_ended)
        found = check(store, mount.path)
        assert found["directory"]["outcome"] == "warning"
        assert "has left a dead mount" in found["directory"]["finding"]
        assert mount.is_mounted()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_a_user_without_access(store: Store, folder: Path, large: str) -> None:
    """A user without access to the device and the directory: the bucket is ok."""
    # A device with the same number that belongs to root replaces this machine's.
    script = f"""
        mount -t tmpfs none {folder}
        mknod -m 600 {folder}/fuse c 10 229
        mount --bind {folder}/fuse /dev/fuse
        exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
    """
    options = ["--prefix", large, "--allow-other", *store_options(store)]
    program = [str(PROGRAM), "--check", "--json", store.bucket, "/usr", *options]
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", *program],
        env=environment(store.environment) | {"HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=SAFE_S,
        check=False,
    )
    found = Found(result)
    assert "fuse_device" in found.failed
    assert found["fuse_device"]["finding"] == "/dev/fuse cannot be opened: Permission denied"
    assert "only root may mount there" in found["directory"]["finding"]
    assert found["permissions"]["details"] == {"uid": 65534, "by": "fusermount"}
    assert found["journal"]["outcome"] == "warning"
    assert found["throughput"]["outcome"] == "ok"


@pytest.mark.parametrize(
    ("behind_s", "options", "outcome"),
    [
        (120, [], "warning"),
        (-1200, [], "failed"),
        (1200, ["--no-sign-request"], "warning"),
    ],
)
def test_the_clock(store: Store, behind_s: int, options: list[str], outcome: str) -> None:
    """The clock is compared with the Date of the answers, including refusals."""

    def other_date(exchange: Exchange) -> None:
        dates = ("Date", formatdate(time.time() + behind_s, usegmt=True))
        exchange.headers = [dates, *(h for h in exchange.headers if h[0].lower() != "date")]

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(other_date)
        found = check(store, *options, endpoint_url=proxy.url)
    assert found["clock"]["outcome"] == outcome
    assert abs(found["clock"]["details"]["skew_s"] - behind_s) <= 2
    assert ("behind" if behind_s > 0 else "ahead of") in found["clock"]["finding"]


def test_small_objects_only(store: Store) -> None:
    """The object is read, but nothing is measured: the result says so."""
    store.put("check-small/one", bytes(3 << 20))
    found = check(store, "--prefix", "check-small/")
    assert found.code == 0
    assert found["list"]["finding"] == "1 object seen; the largest has 3.0 MiB"
    assert found["read"]["outcome"] == "ok"
    assert found["throughput"]["finding"] == "no object of 64 MiB was found"


def test_an_empty_bucket(store: Store) -> None:
    """An empty bucket can be mounted; a prefix without objects gets a warning."""
    client = store.client()
    client.create_bucket(Bucket="check-empty")
    try:
        found = check(store, bucket="check-empty")
        assert found.code == 0
        assert found["list"]["finding"] == "the bucket is empty"
        assert found["read"]["outcome"] == found["throughput"]["outcome"] == "skipped"
        found = check(store, "--prefix", "nothing/", bucket="check-empty")
        assert found.code == 0
        assert found["list"]["outcome"] == "warning"
    finally:
        client.delete_bucket(Bucket="check-empty")


def test_more_than_is_looked_at(store: Store) -> None:
    """At most three pages are listed."""

    def many(exchange: Exchange) -> None:
        if exchange.is_list and "max-keys=1000" in exchange.target:
            page = sum("max-keys=1000" in target for _, target in proxy.seen)
            entries = "".join(
                f"<Contents><Key>check-many/{page}-{n}</Key><Size>0</Size>"
                '<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"a"</ETag></Contents>'
                for n in range(1000)
            )
            exchange.body = (
                "<ListBucketResult><IsTruncated>true</IsTruncated>"
                f"<NextContinuationToken>t</NextContinuationToken>{entries}</ListBucketResult>"
            ).encode()
            exchange.headers = [("Content-Length", str(len(exchange.body)))]

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(many)
        found = check(store, endpoint_url=proxy.url)
        assert sum("max-keys=1000" in target for _, target in proxy.seen) == 3
    assert found["list"]["finding"].startswith("3,000 objects seen, and there are more; ")
    assert found["read"]["outcome"] == "skipped"


def test_archived_objects(store: Store) -> None:
    """Archived objects are counted, and are not read."""
    store.put("check-archived/a", b"x")

    def archived(exchange: Exchange) -> None:
        if exchange.is_list:
            text = exchange.body.decode().replace(
                "<StorageClass>STANDARD<", "<StorageClass>DEEP_ARCHIVE<"
            )
            exchange.body = text.encode()
            exchange.headers = [("Content-Length", str(len(exchange.body)))]

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(archived)
        found = check(store, "--prefix", "check-archived/", endpoint_url=proxy.url)
    assert found["list"]["details"]["archived"] == 1
    assert "restored before reading" in found["list"]["finding"]
    assert found["read"]["finding"] == "no readable object was found"


def test_listing_is_allowed_and_reading_is_not(store: Store, small: str) -> None:
    """The first object says so; nothing is measured."""
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(on_data(refuse(403, "AccessDenied")))
        found = check(store, "--prefix", small, endpoint_url=proxy.url)
    assert found.failed == ["read"]
    assert f"'{small}a.txt' cannot be read: AccessDenied" in found["read"]["finding"]
    assert found.skipped_for("read") == ["throughput"]


def test_the_bucket_is_elsewhere(store: Store, small: str) -> None:
    """It names its region itself, and is found there."""

    def elsewhere(exchange: Exchange) -> None:
        if "/us-west-2/" in exchange.request_headers.get("Authorization", ""):
            exchange.refuse(301, "PermanentRedirect")
            exchange.headers.append(("x-amz-bucket-region", "eu-west-3"))

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(elsewhere)
        where = ["--endpoint-url", proxy.url, "--force-path-style", "--prefix", small]
        env = store.environment | {"AWS_REGION": "us-west-2"}
        found = Found(run("--check", "--json", store.bucket, *where, env=env))
    assert found.code == 0
    assert found["region"]["details"] == {"region": "us-west-2", "source": "environment"}
    assert found["bucket"]["details"]["region"] == "eu-west-3"
    assert "S3 says that it is in eu-west-3" in found["bucket"]["finding"]


@pytest.mark.parametrize(
    ("where", "options"),
    [("credentials", []), ("bucket", []), ("throughput", []), ("throughput", ["--json"])],
)
def test_interrupted(
    store: Store, folder: Path, large: str, where: str, options: list[str]
) -> None:
    """Ctrl-C ends any check immediately: exit code 130, one line, no partial JSON."""
    env = environment(store.environment)
    reached = folder / "reached"
    if where == "credentials":
        script = folder / "ask"
        script.write_text(f"#!/bin/sh\ntouch {reached}\nexec sleep 600\n")
        script.chmod(0o755)
        (folder / "config").write_text(f"[default]\ncredential_process = {script}\n")
        env["AWS_CONFIG_FILE"] = str(folder / "config")
        del env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]

    def stall(exchange: Exchange) -> None:
        stalls = exchange.is_list if where == "bucket" else "large.bin" in exchange.target
        if stalls:
            reached.touch()
            exchange.stall_at = 0

    with FaultyProxy(store.endpoint_url) as proxy:
        if where != "credentials":
            proxy.faults.append(stall)
        options = [*options, *store_options(store, endpoint_url=proxy.url)]
        program = subprocess.Popen(
            [PROGRAM, "--check", store.bucket, "--prefix", large, *options],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            eventually(reached.exists)
            time.sleep(0.2)
            os.killpg(program.pid, signal.SIGINT)  # as a terminal does
            out, err = program.communicate(timeout=20)
        finally:
            program.kill()
            program.wait()
    assert program.returncode == 130
    assert err == "interrupted\n"
    if "--json" in options:
        assert out == ""
    else:
        assert out.startswith("ok ")
        assert "Traceback" not in out


def test_output_to_a_closed_pipe(store: Store, small: str) -> None:
    """A pipe that is closed early is no traceback."""
    where = " ".join(store_options(store))
    result = subprocess.run(
        ["sh", "-c", f"{PROGRAM} --check {store.bucket} --prefix {small} {where} | head -1"],
        env=environment(store.environment),
        capture_output=True,
        text=True,
        timeout=SAFE_S,
        check=False,
    )
    assert result.stdout.startswith("ok ")
    assert "Traceback" not in result.stderr


def test_a_store_with_a_flat_key_space(flat_store: Store, path: Path) -> None:
    """Ministack passes as well, with keys that cannot be file names."""
    flat_store.put("check/\x01\n\x1b[31m", b"x")
    found = check(flat_store, path, "--prefix", "check/")
    assert found.code == 0
    assert found["read"]["details"]["key"] == "check/\\x01\\n\\x1b[31m"
