"""TLS for real: a server with a CA of its own is trusted only when the user says so."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.conftest import Store
from tests.faulty_proxy import FaultyProxy
from tests.mount.mounting import clean_up, mounted, run, store_options

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that nobody knows."""
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, folder: Path) -> Path:
    """Its certificate, as a file."""
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return folder / "ca.pem"


@pytest.fixture
def proxy(store: Store, authority: trustme.CA) -> Iterator[FaultyProxy]:
    """The store behind TLS, with a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FaultyProxy(store.endpoint_url, context) as it:
        yield it


@pytest.mark.parametrize("how", ["option", "environment"])
def test_trusted(store: Store, folder: Path, proxy: FaultyProxy, bundle: Path, how: str) -> None:
    """--ca-bundle and AWS_CA_BUNDLE make the server trusted; all bytes come through."""
    body = os.urandom(3 << 20)
    store.put("tls/file", body)
    options = ["--ca-bundle", str(bundle)] if how == "option" else []
    environment = store.environment
    if how == "environment":
        environment = environment | {"AWS_CA_BUNDLE": str(bundle)}
    there = Store(store.endpoint_url, store.bucket, environment)
    with mounted(there, folder, *options, endpoint_url=proxy.url) as mount:
        assert (mount.path / "tls" / "file").read_bytes() == body


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


def test_bundle_without_certificates(store: Store, folder: Path) -> None:
    """A CA bundle that holds no certificate is refused."""
    path = folder / "mnt"
    path.mkdir()
    (folder / "empty.pem").write_text("not a certificate\n")
    options = [*store_options(store), "--ca-bundle", str(folder / "empty.pem")]
    result = run(store.bucket, path, *options, env=store.environment)
    assert result.returncode == 1
    assert "empty.pem" in result.stderr
    clean_up(path)
