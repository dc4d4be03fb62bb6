"""Endpoints of other forms: below a path, with a tenant in the bucket's name, or redirected."""

from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, Fault, FaultyProxy
from tests.mount.mounting import content, mounted, run, store_options

pytestmark = pytest.mark.mount


def below_path(exchange: Exchange) -> None:
    """Serve the store below /team/s3, and nothing elsewhere."""
    if not exchange.target.startswith("/team/s3/"):
        exchange.refuse(404, "NoSuchBucket")
    exchange.target = exchange.target.removeprefix("/team/s3")


def of_tenant(exchange: Exchange) -> None:
    """Let the bucket belong to a tenant, in paths and copy sources."""
    if not exchange.target.startswith("/tenant%3Atest-bucket"):
        exchange.refuse(404, "NoSuchBucket")
    exchange.target = exchange.target.replace("/tenant%3A", "/", 1)
    source = exchange.request_headers.get("x-amz-copy-source")
    if source is not None:
        exchange.request_headers["x-amz-copy-source"] = source.removeprefix("tenant:")


@pytest.mark.parametrize(
    ("fault", "path", "tenant"), [(below_path, "/team/s3", ""), (of_tenant, "", "tenant:")]
)
def test_named_in_another_form(
    flat_store: Store, folder: Path, fault: Fault, path: str, tenant: str
) -> None:
    """Reads, writes and renames work, and --check finds no fault."""
    prefix = "form/"
    flat_store.put(f"{prefix}file", b"hello")
    bucket = tenant + flat_store.bucket
    with FaultyProxy(flat_store.endpoint_url) as proxy:
        proxy.before.append(fault)
        url = proxy.url + path
        options = ["--prefix", prefix, "--allow-rename", "--allow-delete"]
        with mounted(flat_store, folder, *options, bucket=bucket, endpoint_url=url) as mount:
            assert (mount.path / "file").read_bytes() == b"hello"
            (mount.path / "new").write_bytes(b"new")
            (mount.path / "new").rename(mount.path / "renamed")
            assert content(flat_store, f"{prefix}renamed") == b"new"
            (mount.path / "renamed").unlink()
        # Without --force-path-style the name is in the path anyway.
        where = ["--endpoint-url", url, "--region", "us-east-1", "--prefix", prefix]
        found = run("--check", bucket, *where, env=flat_store.environment)
        assert found.returncode == 0, found.stdout
        assert f"'{prefix}file' can be read" in found.stdout


@pytest.mark.parametrize("status", [301, 308])
def test_redirected(flat_store: Store, folder: Path, status: int) -> None:
    """Mounting and --check name the right endpoint, and follow no redirect."""

    def to_https(exchange: Exchange) -> None:
        exchange.status = status
        exchange.headers = [
            ("Location", f"https://s3.example.com{exchange.target}"),
            ("Content-Length", "0"),
        ]

    with FaultyProxy(flat_store.endpoint_url) as proxy:
        proxy.before.append(to_https)
        options = store_options(flat_store, endpoint_url=proxy.url)
        for arguments in (["--check", flat_store.bucket], [flat_store.bucket, folder]):
            found = run(*arguments, *options, env=flat_store.environment)
            assert found.returncode == 1
            said = found.stdout + found.stderr
            assert "redirects to https://s3.example.com: redirects are not followed" in said
            assert "use --endpoint-url https://s3.example.com\n" in said


def test_a_tenant_without_a_store(flat_store: Store, folder: Path) -> None:
    """No bucket at AWS has such a name, so no request is sent."""
    found = run("tenant:bucket", folder, "--region", "us-east-1", env=flat_store.environment)
    assert found.returncode == 1
    assert "'tenant:bucket' is not the name of a bucket at AWS" in found.stderr
    assert "--endpoint-url" in found.stderr
