"""Real TLS: a server with its own CA is trusted only if the user names the CA."""

import os
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from tests.conftest import Store
from tests.faulty_proxy import FaultyProxy
from tests.mount.mounting import clean_up, mounted, run, store_options

pytestmark = pytest.mark.mount


@pytest.fixture
def proxy(store: Store, authority: trustme.CA) -> Iterator[FaultyProxy]:
    """The store behind TLS, with a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FaultyProxy(store.endpoint_url, context) as it:
        yield it


@pytest.mark.parametrize("how", ["option", "environment", "profile"])
def test_trusted(store: Store, folder: Path, proxy: FaultyProxy, bundle: Path, how: str) -> None:
    """--ca-bundle, AWS_CA_BUNDLE or the profile make the server trusted, and all bytes arrive."""
    body = os.urandom(3 << 20)
    store.put("tls/file", body)
    options = ["--ca-bundle", str(bundle)] if how == "option" else []
    environment = store.environment
    if how == "environment":
        environment = environment | {"AWS_CA_BUNDLE": str(bundle)}
    elif how == "profile":
        (folder / "config").write_text(f"[default]\nca_bundle = {bundle}\n")
        environment = environment | {"AWS_CONFIG_FILE": str(folder / "config")}
    there = Store(store.endpoint_url, store.bucket, environment)
    with mounted(there, folder, *options, endpoint_url=proxy.url) as mount:
        assert (mount.path / "tls" / "file").read_bytes() == body


def test_connections_are_used_again(
    store: Store, folder: Path, proxy: FaultyProxy, bundle: Path
) -> None:
    """64 opens at once make no more connections than the mount has threads; the next ones none."""
    for index in range(128):
        store.put(f"burst/{index}", b"content")
    options = ["--ca-bundle", str(bundle), "--prefix", "burst/"]
    with (
        mounted(store, folder, *options, endpoint_url=proxy.url) as mount,
        ThreadPoolExecutor(64) as pool,
    ):
        made = []
        for first in (0, 64):
            before = proxy.accepted
            paths = [mount.path / str(index) for index in range(first, first + 64)]
            assert set(pool.map(Path.read_bytes, paths)) == {b"content"}
            made.append(proxy.accepted - before)
    # Listings and lookups may need some at the same time.
    assert made[0] <= 32
    assert made[1] <= 8


@pytest.mark.parametrize("trust", ["nothing", "another CA"])
def test_not_trusted(store: Store, folder: Path, proxy: FaultyProxy, trust: str) -> None:
    """Without the right CA nothing is sent, and the message names the option."""
    path = folder / "mnt"
    path.mkdir()
    options = []
    if trust == "another CA":
        trustme.CA().cert_pem.write_to_path(str(folder / "other.pem"))
        options = ["--ca-bundle", str(folder / "other.pem")]
    try:
        where = store_options(store, endpoint_url=proxy.url)
        result = run(store.bucket, path, *where, *options, env=store.environment)
        assert result.returncode == 1
        assert "TLS" in result.stderr
        assert "--ca-bundle" in result.stderr
        assert proxy.seen == []
    finally:
        clean_up(path)


@pytest.mark.parametrize(
    ("names", "ends", "what", "hint"),
    [
        (["127.0.0.1"], datetime(2020, 1, 2, tzinfo=UTC), "certificate has expired", "clock"),
        (["s3.example.com"], None, "not valid for '127.0.0.1'", "--endpoint-url"),
    ],
    ids=["expired", "of another name"],
)
def test_wrong_certificate(
    store: Store,
    folder: Path,
    authority: trustme.CA,
    bundle: Path,
    names: list[str],
    ends: datetime | None,
    what: str,
    hint: str,
) -> None:
    """A wrong certificate of a known CA: the message says why, and nothing is sent."""
    path = folder / "mnt"
    path.mkdir()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    begins = None if ends is None else ends - timedelta(days=1)
    authority.issue_cert(*names, not_before=begins, not_after=ends).configure_cert(context)
    try:
        with FaultyProxy(store.endpoint_url, context) as server:
            where = store_options(store, endpoint_url=server.url)
            result = run(store.bucket, path, *where, "--ca-bundle", bundle, env=store.environment)
            assert server.seen == []
        assert result.returncode == 1
        assert what in result.stderr
        assert hint in result.stderr
    finally:
        clean_up(path)


def test_bundle_without_certificates(store: Store, folder: Path) -> None:
    """A CA bundle without a certificate is refused."""
    path = folder / "mnt"
    path.mkdir()
    (folder / "empty.pem").write_text("not a certificate\n")
    options = [*store_options(store), "--ca-bundle", str(folder / "empty.pem")]
    result = run(store.bucket, path, *options, env=store.environment)
    assert result.returncode == 1
    assert "empty.pem" in result.stderr
    clean_up(path)
