"""Endpoint settings from variables and the AWS configuration, and how options override them."""

from dataclasses import replace
from pathlib import Path

import pytest

from mountpoint.config import BucketConfig, ClientConfig, Config, FileSystemConfig, MountConfig
from mountpoint.errors import MountError
from mountpoint.s3.aws.settings import AwsSettings, aws_settings
from tests.unit.aws_fakes import isolate

URL, OTHER_URL = "https://one.example", "https://two.example"
IGNORED = {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "True"}
PROFILE = f"""
[default]
services = mine
endpoint_url = {OTHER_URL}
use_dualstack_endpoint = true
use_fips_endpoint = true
max_attempts = 7

[profile plain]
endpoint_url = {OTHER_URL}

[profile dangling]
services = nothing

[profile none]

[services mine]
s3 =
  endpoint_url = {URL}
dynamodb =
  endpoint_url = https://dynamo.example
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (isolate(tmp_path, monkeypatch) / "config").write_text(PROFILE)


def config(**bucket: object) -> Config:
    """Return a configuration with options of the bucket."""
    return Config(
        bucket=BucketConfig("bucket", **bucket),  # type: ignore[arg-type]
        mount=MountConfig("/mnt"),
        filesystem=FileSystemConfig(0, 0),
    )


@pytest.mark.parametrize(
    ("profile", "environ", "url", "source"),
    [
        ("none", {}, None, ""),
        ("none", {"AWS_ENDPOINT_URL": URL}, URL, "AWS_ENDPOINT_URL"),
        ("none", {"AWS_ENDPOINT_URL": OTHER_URL, "AWS_ENDPOINT_URL_S3": URL}, URL, "S3"),
        ("none", {"AWS_ENDPOINT_URL": URL, "AWS_ENDPOINT_URL_S3": ""}, URL, "AWS_ENDPOINT_URL"),
        ("none", {"AWS_ENDPOINT_URL_DYNAMODB": URL}, None, ""),
        ("plain", {}, OTHER_URL, "profile 'plain'"),
        ("plain", {"AWS_ENDPOINT_URL": URL}, URL, "AWS_ENDPOINT_URL"),
        (None, {}, URL, "section 'services mine'"),
        (None, IGNORED, None, ""),
        ("none", IGNORED | {"AWS_ENDPOINT_URL": URL}, None, ""),
    ],
)
def test_endpoint(profile: str | None, environ: dict[str, str], url: str, source: str) -> None:
    """S3's own variable, that of all services, the services section, the profile."""
    found = aws_settings(profile, environ)
    assert found.endpoint_url == url
    assert source in found.endpoint_source


def test_the_rest() -> None:
    """Variables override the profile, which supports the same settings."""
    found = aws_settings(None, {})
    assert (found.dual_stack, found.fips, found.max_attempts) == (True, True, 7)
    environ = {
        "AWS_USE_DUALSTACK_ENDPOINT": "false",
        "AWS_USE_FIPS_ENDPOINT": "False",
        "AWS_MAX_ATTEMPTS": "2",
    }
    found = aws_settings(None, environ)
    assert (found.dual_stack, found.fips, found.max_attempts) == (False, False, 2)
    found = aws_settings("none", {})
    assert (found.dual_stack, found.fips, found.max_attempts) == (False, False, None)


@pytest.mark.parametrize(
    ("profile", "environ", "message"),
    [
        ("dangling", {}, "services nothing"),
        ("none", {"AWS_USE_FIPS_ENDPOINT": "yes"}, "AWS_USE_FIPS_ENDPOINT"),
        ("none", {"AWS_USE_DUALSTACK_ENDPOINT": "1"}, "AWS_USE_DUALSTACK_ENDPOINT"),
        ("none", {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "no"}, "AWS_IGNORE"),
        ("none", {"AWS_MAX_ATTEMPTS": "many"}, "AWS_MAX_ATTEMPTS"),
        ("none", {"AWS_MAX_ATTEMPTS": "0"}, "AWS_MAX_ATTEMPTS"),
        ("none", {"AWS_MAX_ATTEMPTS": "-1"}, "AWS_MAX_ATTEMPTS"),
        ("missing", {}, "there is no profile 'missing'"),
    ],
)
def test_invalid_values(profile: str, environ: dict[str, str], message: str) -> None:
    """Invalid values are an error, not silently false."""
    with pytest.raises(MountError, match=message):
        aws_settings(profile, environ)


def test_applied() -> None:
    """Settings apply unless an option is given."""
    around = AwsSettings(endpoint_url=URL, endpoint_source="X", fips=True, max_attempts=2)
    found = around.apply_to(config())
    assert (found.bucket.endpoint_url, found.bucket.fips) == (URL, True)
    assert found.client.max_tries == 2
    assert around.apply_to(config(endpoint_url=OTHER_URL)).bucket.endpoint_url == OTHER_URL


def test_ca_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile's path is the user's; the option and the variable override it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    bundles = [tmp_path / "profile.pem", tmp_path / "option.pem"]
    for bundle in bundles:
        bundle.write_text("")
    with (tmp_path / "config").open("a") as file:
        file.write("[profile company]\nca_bundle = ~/profile.pem\n")
    around = aws_settings("company", {})
    assert around.apply_to(config()).client.ca_bundle == str(bundles[0])
    given = replace(config(), client=ClientConfig(ca_bundle=str(bundles[1])))
    assert around.apply_to(given).client.ca_bundle == str(bundles[1])
    assert aws_settings("none", {}).apply_to(given).client.ca_bundle == str(bundles[1])
    bundles[0].unlink()
    with pytest.raises(MountError, match=r"profile\.pem"):
        around.apply_to(config())


def test_dual_stack_is_of_aws() -> None:
    """A named endpoint is used unchanged."""
    around = AwsSettings(dual_stack=True)
    assert around.apply_to(config()).bucket.dual_stack
    assert not around.apply_to(config(endpoint_url=URL)).bucket.dual_stack
    assert not AwsSettings(endpoint_url=URL, dual_stack=True).apply_to(config()).bucket.dual_stack


@pytest.mark.parametrize(
    "url",
    ["one.example", "https://one.example/?x", "s3://bucket", "x"],
)
def test_no_endpoint(url: str) -> None:
    """The message names the source."""
    with pytest.raises(MountError, match="of AWS_ENDPOINT_URL is not an endpoint URL"):
        aws_settings("none", {"AWS_ENDPOINT_URL": url}).apply_to(config())


def test_acceleration_has_its_own() -> None:
    """Acceleration and a named endpoint exclude each other."""
    with pytest.raises(MountError, match="AWS_ENDPOINT_URL_S3 names an endpoint"):
        aws_settings("none", {"AWS_ENDPOINT_URL_S3": URL}).apply_to(
            config(transfer_acceleration=True)
        )
