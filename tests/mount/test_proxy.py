"""S3 behind an HTTP proxy: real mounts through a real proxy.

Only the proxy resolves names that end in ".test", so reads from them go through it.
"""

import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from tests.conftest import Store
from tests.faulty_proxy import FaultyProxy
from tests.forward_proxy import ForwardProxy
from tests.mount.mounting import clean_up, eventually, mounted, run, store_options
from tests.mount.ways import place
from tools.processes import Ports

pytestmark = pytest.mark.mount

NAME = "s3.store.test"
#: The password as it is sent, and as it is written in a URL.
PASSWORD, ENCODED = "pa#ss%word-7", "pa%23ss%25word-7"


@pytest.fixture(scope="module")
def server(store: Store, authority: trustme.CA) -> Iterator[FaultyProxy]:
    """The store behind TLS, by name and by address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME, "127.0.0.1").configure_cert(context)
    with FaultyProxy(store.endpoint_url, context) as it:
        yield it


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForwardProxy]:
    """A proxy that requires a password."""
    with ForwardProxy(tmp_path_factory.mktemp("proxy"), f"user:{PASSWORD}") as it:
        yield it


def login(proxy: ForwardProxy, password: str = ENCODED) -> str:
    return f"http://user:{password}@127.0.0.1:{proxy.port}"


def there(store: Store, **environ: str) -> Store:
    """Return the store with these variables."""
    return Store(store.endpoint_url, store.bucket, store.environment | environ)


def refused(store: Store, folder: Path, url: str, *options: str | Path, **environ: str) -> str:
    """Return the message of a failed mount."""
    path = folder / "mnt"
    path.mkdir()
    try:
        where = store_options(store, endpoint_url=url)
        result = run(store.bucket, path, *where, *options, env=store.environment | environ)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        return result.stderr
    finally:
        clean_up(path)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy"])
def test_tunnel(
    store: Store,
    folder: Path,
    server: FaultyProxy,
    proxy: ForwardProxy,
    bundle: Path,
    variable: str,
) -> None:
    """https goes through a tunnel, the password is decoded, and it is logged nowhere."""
    body = os.urandom(9 << 20)
    store.put("proxy/file", body)
    url = f"https://{NAME}:{server.port}"
    options = ["--ca-bundle", str(bundle), "--debug", "--debug-crt"]
    by = there(store, **{variable: login(proxy)})
    with mounted(by, folder, *options, endpoint_url=url) as mount:
        assert (mount.path / "proxy" / "file").read_bytes() == body
        (mount.path / "proxy" / variable).write_bytes(body)
        assert f"proxy=http://127.0.0.1:{proxy.port}" in mount.log
        log = mount.log
    eventually(lambda: f"CONNECT {NAME}:{server.port}" in proxy.log)
    got = store.client().get_object(Bucket=store.bucket, Key=f"proxy/{variable}")["Body"].read()
    assert got == body
    assert not any(word in log for word in (PASSWORD, ENCODED, "Proxy-Authorization"))


def test_forwarded(store: Store, folder: Path, proxy: ForwardProxy) -> None:
    """http is forwarded, and signatures stay valid."""
    store.put("proxy/file", b"content")
    url = f"http://{NAME}:{urlsplit(store.endpoint_url).port}"
    by = there(store, HTTP_PROXY=login(proxy))
    with mounted(by, folder, endpoint_url=url) as mount:
        assert (mount.path / "proxy" / "file").read_bytes() == b"content"
        (mount.path / "proxy" / "new").write_bytes(b"new")
    eventually(lambda: f"GET {urlsplit(url).netloc}/{store.bucket}" in proxy.log)


def test_keys(store: Store, folder: Path, proxy: ForwardProxy) -> None:
    """Requests to STS also go through the proxy, with the password decoded once."""
    store.put("proxy/file", b"content")
    with place(store, folder, "web identity") as it:
        port = urlsplit(it.there.environment["AWS_ENDPOINT_URL_STS"]).port
        sts = {"AWS_ENDPOINT_URL_STS": f"http://sts.store.test:{port}"}
        by = there(it.there, HTTP_PROXY=login(proxy), **sts)
        url = f"http://{NAME}:{urlsplit(it.url).port}"
        with mounted(by, folder, endpoint_url=url) as mount:
            assert (mount.path / "proxy" / "file").read_bytes() == b"content"
        assert it.keys.refused == []
    eventually(lambda: f"POST sts.store.test:{port}/" in proxy.log)


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "127.0.0.0/8", "*"])
def test_no_proxy(
    store: Store, folder: Path, server: FaultyProxy, bundle: Path, no_proxy: str
) -> None:
    """Hosts in NO_PROXY are reached without the proxy, which does not exist."""
    by = there(store, HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY=no_proxy)
    with mounted(by, folder, "--ca-bundle", str(bundle), endpoint_url=server.url) as mount:
        assert mount.is_mounted()


def test_wrong_password(
    store: Store, folder: Path, server: FaultyProxy, proxy: ForwardProxy, bundle: Path
) -> None:
    """If the proxy refuses, the message has its answer and the variable, but not the password."""
    url = f"https://{NAME}:{server.port}"
    environ = {"HTTPS_PROXY": login(proxy, "wrong-pass-7")}
    said = refused(store, folder, url, "--ca-bundle", bundle, **environ)
    assert f"the proxy http://127.0.0.1:{proxy.port} of HTTPS_PROXY" in said
    assert "407" in said
    assert "the proxy's user and password" in said
    assert "wrong-pass-7" not in said


def test_wrong_password_forwarded(store: Store, folder: Path, proxy: ForwardProxy) -> None:
    """The same with http, where the proxy answers instead of the server."""
    url = f"http://{NAME}:{urlsplit(store.endpoint_url).port}"
    said = refused(store, folder, url, HTTP_PROXY=login(proxy, "wrong-pass-7"))
    assert "HTTP status 407" in said
    assert "the proxy in HTTP_PROXY refuses the user and password, or needs them" in said
    assert "wrong-pass-7" not in said


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_not_there(store: Store, folder: Path, scheme: str) -> None:
    """The message names a proxy that does not answer."""
    ports = Ports()
    nobody = f"http://127.0.0.1:{ports.one()}"
    ports.release()
    variable = f"{scheme}_proxy"
    said = refused(store, folder, f"{scheme}://{NAME}:9000", **{variable: nobody})
    assert f"the proxy {nobody} of {variable}: " in said
    assert "refused" in said


def test_certificate_not_trusted(
    store: Store, folder: Path, server: FaultyProxy, proxy: ForwardProxy
) -> None:
    """TLS is with the server behind the proxy: an untrusted server gets nothing."""
    before = len(server.seen)
    said = refused(store, folder, f"https://{NAME}:{server.port}", HTTPS_PROXY=login(proxy))
    assert "TLS certificate is not trusted" in said
    assert "--ca-bundle" in said
    assert len(server.seen) == before


def test_proxy_behind_tls(store: Store, folder: Path, server: FaultyProxy, bundle: Path) -> None:
    """The system must trust the proxy's own certificate, and the message says so."""
    url = f"https://{NAME}:9000"
    said = refused(store, folder, url, "--ca-bundle", bundle, HTTPS_PROXY=server.url)
    assert f"the proxy {server.url} of HTTPS_PROXY: its TLS certificate is not trusted" in said
    assert "the system must trust" in said


def test_proxy_restarts(store: Store, folder: Path, server: FaultyProxy, bundle: Path) -> None:
    """While the proxy is gone a read waits, and then gets all bytes."""
    body = os.urandom(24 << 20)
    store.put("proxy/long", body)
    url = f"https://{NAME}:{server.port}"
    with ForwardProxy(folder / "proxy") as proxy:
        by = there(store, HTTPS_PROXY=proxy.url)
        with (
            mounted(by, folder, "--ca-bundle", str(bundle), endpoint_url=url) as mount,
            (mount.path / "proxy" / "long").open("rb") as file,
        ):
            begun = file.read(1 << 20)
            proxy.stop()
            again = threading.Timer(2.0, proxy.start)
            again.start()
            assert begun + file.read() == body
            again.join()
