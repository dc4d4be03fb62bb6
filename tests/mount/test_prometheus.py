"""The metrics and health checks of a mount; clients cannot disturb it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

from tests import dashboard
from tests.conftest import Store
from tests.faulty_proxy import FaultyProxy
from tests.mount.mounting import (
    PROGRAM,
    Mount,
    clean_up,
    environment,
    eventually,
    mounted,
    run,
    store_options,
)
from tools import mounting

pytestmark = pytest.mark.mount

#: The names of AWS's mount-s3 by OpenTelemetry's rules.
REFERENCE = {
    "fuse_io_size_bytes": "histogram",
    "fuse_request_errors": "counter",
    "fuse_request_latency_microseconds": "histogram",
    "process_memory_usage_bytes": "gauge",
    "s3_request_count": "counter",
    "s3_request_errors": "counter",
    "s3_request_first_byte_latency_microseconds": "histogram",
    "s3_request_total_latency_microseconds": "histogram",
    "experimental_fuse_idle_threads": "histogram",
    "experimental_fuse_total_threads_ratio": "gauge",
}


def address(mount: Mount) -> tuple[str, int]:
    """Return the server's address from the log."""
    (found,) = set(re.findall(r"url=http://(\S+):(\d+)/metrics", mount.log))
    return found[0].strip("[]"), int(found[1])


def get(mount: Mount, path: str, **headers: str) -> tuple[int, str]:
    """Return status and body."""
    connection = http.client.HTTPConnection(*address(mount), timeout=15)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def values(text: str) -> dict[tuple[str, frozenset[Any]], float]:
    """Return all samples by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    """Return one sample."""
    return values(text)[name, frozenset(labels.items())]


@pytest.fixture(scope="module")
def mount(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount for all tests that do not count what it does."""
    options = ("--prefix", "metrics/", "--prometheus", "[::1]:0", "--debug")
    with mounted(store, tmp_path_factory.mktemp("metrics"), *options) as it:
        yield it


def test_a_scrape(store: Store, folder: Path) -> None:
    """Names and types are those of AWS's mount-s3, the numbers are exact, and ours are included."""
    store.put("prometheus/a", b"x" * 100_000)
    options = ("--prefix", "prometheus/", "--prometheus", "localhost:0", "--debug")
    with mounted(store, folder, *options) as mount:
        assert (mount.path / "a").read_bytes() == b"x" * 100_000
        (mount.path / "new").write_bytes(b"y" * 3000)
        counters = mount.counters()
        status, text = get(mount, "/metrics")
        assert status == 200
        _, later = get(mount, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert address(mount)[0] == "localhost"
    found = {family.name: family for family in parse(text)}
    assert {name: found[name].type for name in REFERENCE} == REFERENCE
    assert all(family.documentation for family in found.values())
    families = parse_openmetrics(later)  # type: ignore[no-untyped-call]
    assert {family.name for family in families} == set(found)

    gets = {"s3_request": "GetObject"}
    assert value(text, "s3_request_count_total", **gets) == 1
    assert value(text, "fuse_io_size_bytes_sum", fuse_request="read") == 100_000
    assert value(text, "fuse_io_size_bytes_sum", fuse_request="write") == 3000
    assert value(text, "fuse_request_latency_microseconds_count", fuse_request="open") == 1
    assert value(text, "experimental_fuse_total_threads_ratio") == 16
    assert value(text, "process_memory_usage_bytes") > 10 << 20
    for name, number in counters.items():
        assert value(text, f"mount_s3_{name}_total") == number, name
    mine = Path("/proc/self/comm").read_text().strip()
    assert value(text, "mount_s3_program_bytes_read_total", program=mine) == 100_000
    assert value(text, "mount_s3_program_requests_total", program=mine, **gets) == 1

    buckets = [
        (float(sample.labels["le"]), sample.value)
        for sample in found["fuse_io_size_bytes"].samples
        if sample.name.endswith("_bucket") and sample.labels["fuse_request"] == "write"
    ]
    assert buckets[-1] == (float("inf"), 1.0)
    assert [le for le, _ in buckets[:-1]] == [float(1 << power) for power in range(9, 21)]
    assert [count for le, count in buckets] == [float(le >= 4096) for le, _ in buckets]


def test_the_dashboard(store: Store, mount: Mount) -> None:
    """Every metric and label that its queries use is one that a mount exports."""
    store.put("metrics/a", b"x" * 1000)
    store.put("metrics/gone", b"x" * 1000)
    assert (mount.path / "a").read_bytes() == b"x" * 1000
    (mount.path / "new").write_bytes(b"y" * 3000)
    assert (mount.path / "gone").stat().st_size == 1000
    store.delete("metrics/gone")
    with pytest.raises(OSError, match="gone"):  # a failed request
        (mount.path / "gone").read_bytes()
    with (mount.path / "a").open("rb"):
        _, text = get(mount, "/metrics")
    exported: dict[str, set[str]] = {}
    for name, labels in values(text):
        exported.setdefault(name, set()).update(label for label, _ in labels)
    for query in dashboard.queries():
        for use in dashboard.uses(query):
            assert use.metric in exported, query
            assert use.labels - dashboard.SCRAPED <= exported[use.metric], query
    assert value(text, "mount_s3_open_files") == 1
    assert value(text, "mount_s3_files_being_written") == 0
    assert value(text, "mount_s3_data_memory_limit_bytes") >= 128 << 20


def test_slow_clients(mount: Mount) -> None:
    """They keep nobody from an answer, and are cut after ten seconds, however busy they seem."""
    assert address(mount)[0] == "::1"
    slow = [socket.create_connection(address(mount), timeout=1) for _ in range(4)]
    begun_s = time.monotonic()
    try:
        for each in slow:
            each.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        assert get(mount, "/healthz") == (200, "ok\n")
        assert get(mount, "/livez") == (200, "ok\n")
        for each in slow:
            while not is_closed(each):
                assert time.monotonic() - begun_s < 30
    finally:
        for each in slow:
            each.close()
    assert get(mount, "/healthz") == (200, "ok\n")


def is_closed(connection: socket.socket) -> bool:
    """Send one more byte; return whether the other side has closed the connection."""
    try:
        connection.sendall(b"x")
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_other_requests(mount: Mount) -> None:
    """Some of the metrics only; other paths and methods are refused."""
    status, text = get(mount, "/metrics?name[]=process_memory_usage_bytes")
    assert status == 200
    assert {family.name for family in parse(text)} == {"process_memory_usage_bytes"}
    status, text = get(mount, "/etc/passwd")
    assert (status, text) == (404, "use /metrics, /healthz or /livez\n")


def test_more_than_may_connect(mount: Mount) -> None:
    """What comes on top is closed at once, and the mount has no more threads for it."""
    held = [socket.create_connection(address(mount), timeout=20) for _ in range(8)]
    more = []
    try:
        for _ in range(20):
            more.append(socket.create_connection(address(mount), timeout=20))
            assert more[-1].recv(1) == b""
        # Threads that have only to do with mounting may end meanwhile.
        most = threads(mount)
        more += [socket.create_connection(address(mount), timeout=20) for _ in range(20)]
        for each in more[20:]:
            assert each.recv(1) == b""
        assert threads(mount) <= most
    finally:
        for each in held + more:
            each.close()
    eventually(lambda: threads(mount) <= most - 8)
    assert get(mount, "/healthz") == (200, "ok\n")


def threads(mount: Mount) -> int:
    """Return the number of threads."""
    return len(os.listdir(f"/proc/{mount.pid}/task"))


def test_health_by_the_answers_of_s3(store: Store, folder: Path) -> None:
    """If all requests fail, /healthz says why. A restart would not help, so /livez is ok."""
    store.put("health/a", b"x" * 10)
    with FaultyProxy(store.endpoint_url) as proxy:
        options = ("--prefix", "health/", "--prometheus", ":0", "--debug", "--read-timeout", "2")
        with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
            with pytest.raises(FileNotFoundError):
                (mount.path / "none").stat()
            assert address(mount)[0] == "127.0.0.1"
            assert get(mount, "/healthz") == (200, "ok\n")
            proxy.faults.append(lambda exchange: exchange.refuse(503, "SlowDown"))
            for name in ("b", "c"):
                with pytest.raises(OSError, match="error"):
                    (mount.path / name).stat()
            status, text = get(mount, "/healthz")
            assert re.fullmatch(r"all requests of the last \d+ s have failed: SlowDown\n", text)
            assert status == 503
            assert get(mount, "/livez") == (200, "ok\n")
            proxy.faults.clear()
            assert (mount.path / "a").read_bytes() == b"x" * 10
            assert get(mount, "/healthz") == (200, "ok\n")


def test_health_before_it_is_mounted(store: Store, folder: Path) -> None:
    """The server answers from the start, and is unhealthy until programs can use the mount."""
    path, logs = folder / "mnt", folder / "log"
    path.mkdir()
    mount = Mount(path, logs)
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(lambda exchange: setattr(exchange, "delay_s", 3.0))
        options = ["--foreground", "--debug", "--prometheus", ":0", "--log-directory", str(logs)]
        program = subprocess.Popen(
            [PROGRAM, store.bucket, path, *options, *store_options(store, endpoint_url=proxy.url)],
            env=environment(store.environment),
            stderr=subprocess.DEVNULL,
        )
        try:
            eventually(lambda: "/metrics" in mount.log)
            assert get(mount, "/healthz") == (503, "the bucket is not mounted yet\n")
            assert get(mount, "/livez")[0] == 503
            assert not mount.is_mounted()
            eventually(lambda: get(mount, "/healthz")[0] == 200)
            assert mount.is_mounted()
            program.send_signal(signal.SIGTERM)
            assert program.wait(20) == 0
            with pytest.raises(ConnectionRefusedError):
                get(mount, "/healthz")
        finally:
            program.kill()
            program.wait()
            clean_up(path)


def test_an_address_in_use(store: Store, folder: Path) -> None:
    """An address in use is reported before the mount."""
    path = folder / "mnt"
    path.mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wanted = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run(
            store.bucket, path, *store_options(store), "--prometheus", wanted, env=store.environment
        )
    assert result.returncode == 1
    assert f"cannot listen at {wanted}: Address already in use" in result.stderr
    assert not mounting.is_mounted(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("192.0.2.1:9100", "cannot listen at 192.0.2.1:9100: Cannot assign requested address"),
        ("no.such.host.invalid:9100", "'no.such.host.invalid' is not an address of this machine"),
    ],
)
def test_invalid_addresses(text: str, said: str, store: Store, folder: Path) -> None:
    """An invalid address is refused in one message."""
    options = [*store_options(store), "--prometheus", text]
    result = run(store.bucket, folder, *options, env=store.environment)
    assert (result.returncode, said in result.stderr) == (1, True), result.stderr
    assert not mounting.is_mounted(folder)


def test_health_when_credentials_end(store: Store, folder: Path) -> None:
    """Expired credentials show without any request."""
    script, config, until = folder / "keys", folder / "config", folder / "until"
    keys = {
        "Version": 1,
        "AccessKeyId": store.environment["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": store.environment["AWS_SECRET_ACCESS_KEY"],
        "Expiration": "@",
    }
    # They start to expire at the first call, because mounting may take a while.
    later = "date -u -d '+10 seconds' +%Y-%m-%dT%H:%M:%SZ"
    script.write_text(
        f"#!/bin/sh\n[ -e {until} ] || {later} > {until}\n"
        f'cat <<E | sed "s/@/$(cat {until})/"\n{json.dumps(keys)}\nE\n'
    )
    script.chmod(0o700)
    config.write_text(f"[default]\ncredential_process = {script}\n")
    gone = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    environ = {"AWS_CONFIG_FILE": str(config), "AWS_ENDPOINT_URL_S3": store.endpoint_url}
    bare = replace(store, environment={k: v for k, v in store.environment.items() if k not in gone})
    options = ("--force-path-style", "--prometheus", ":0", "--debug")
    with mounted(bare, folder, *options, environ=environ) as mount:
        assert get(mount, "/healthz") == (200, "ok\n")
        eventually(lambda: get(mount, "/healthz")[0] == 503)
        assert datetime.now(UTC) >= datetime.fromisoformat(until.read_text().strip())
        assert "the credentials have expired" in get(mount, "/healthz")[1]
        assert get(mount, "/livez") == (200, "ok\n")
