"""Variables that configure endpoints, on real mounts."""

import errno
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import clean_up, errno_of, mounted, run, store_options
from tests.unit.aws_fakes import Service, serving

pytestmark = pytest.mark.mount

OPTIONS = ["--force-path-style", "--prefix", "surroundings/"]
REGION = {"AWS_REGION": "us-east-1"}


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_endpoint(store: Store, folder: Path, name: str) -> None:
    """The bucket is mounted from the server that a variable names."""
    store.put("surroundings/file", b"content")
    with mounted(store, folder, *OPTIONS, environ=REGION | {name: store.endpoint_url}) as mount:
        assert (mount.path / "file").read_bytes() == b"content"


def test_endpoint_of_the_profile(store: Store, folder: Path) -> None:
    """The same with a section of the AWS configuration."""
    store.put("surroundings/file", b"content")
    configuration = folder / "config"
    configuration.write_text(
        "[default]\nservices = here\n[services here]\ns3 =\n"
        f"  endpoint_url = {store.endpoint_url}\n"
    )
    environ = REGION | {"AWS_CONFIG_FILE": str(configuration)}
    with mounted(store, folder, *OPTIONS, environ=environ) as mount:
        assert (mount.path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("most", [1, 3])
def test_attempts(store: Store, folder: Path, most: int) -> None:
    """AWS_MAX_ATTEMPTS sets the number of tries."""
    store.put("surroundings/file", b"content")
    asked = []

    def refused(exchange: Exchange) -> None:
        if exchange.is_data:
            asked.append(exchange.target)
            exchange.refuse(503, "SlowDown")

    with FaultyProxy(store.endpoint_url) as proxy:
        environ = REGION | {"AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": str(most)}
        with mounted(store, folder, *OPTIONS, environ=environ) as mount:
            (mount.path / "file").stat()
            proxy.faults.append(refused)
            assert errno_of((mount.path / "file").read_bytes) == errno.EIO
    assert len(asked) == most


class Proxy(Service):
    """A proxy that forwards nothing."""

    def answer(self, body: str) -> tuple[int, str]:
        return 502, ""

    do_CONNECT = Service.do_GET  # noqa: N815


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxies(store: Store, folder: Path, scheme: str) -> None:
    """Requests to S3 use the proxy in the variables, except for hosts in NO_PROXY."""
    url = store.endpoint_url.replace("http:", f"{scheme}:")
    host = urlsplit(url).netloc
    path = folder / "mnt"
    path.mkdir()
    with serving(Proxy) as (proxy, service):
        asked = service.requests
        environ = {**store.environment, "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy}
        options: list[str | Path] = [store.bucket, path, *store_options(store, endpoint_url=url)]
        result = run(*options, env=environ)
        assert result.returncode == 1
        assert asked
        expected = f"CONNECT {host}" if scheme == "https" else f"GET http://{host}/{store.bucket}"
        assert all(each.startswith(expected) for each in asked)
        if scheme == "http":
            asked.clear()
            try:
                result = run(*options, env=environ | {"NO_PROXY": "127.0.0.1"})
                assert (result.returncode, asked) == (0, [])
            finally:
                clean_up(path)


def test_a_variable_that_makes_no_sense(store: Store, folder: Path) -> None:
    """The message names the variable, and nothing is mounted."""
    environ = {**store.environment, "AWS_ENDPOINT_URL_S3": "one.example"}
    result = run(store.bucket, folder, env=environ)
    assert result.returncode == 1
    assert "'one.example' of AWS_ENDPOINT_URL_S3 is not an endpoint URL" in result.stderr
    assert "Traceback" not in result.stderr
