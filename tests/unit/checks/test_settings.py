"""Checks of credentials, configuration, region and endpoint."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import botocore.credentials
import pytest

from mountpoint.checks import settings
from mountpoint.config import (
    BucketConfig,
    ClientConfig,
)
from mountpoint.errors import MountError
from mountpoint.s3.aws.credentials import Origin
from mountpoint.s3.aws.ec2 import Instance
from mountpoint.s3.aws.endpoint import RegionChoice
from tests.unit.aws_fakes import isolate
from tests.unit.checks.subjects import subject

#: Later than the expiry check, even if other tests take minutes.
LATER = datetime.now(UTC) + timedelta(days=50)


@pytest.mark.parametrize(
    ("origin", "finding"),
    [
        (
            Origin("env", None, "AKIA…MPLE", None),
            "environment variables, access key AKIA…MPLE, no expiry",
        ),
        (
            Origin("sso", "work", "ASIA…MPLE", LATER),
            "SSO, profile 'work', access key ASIA…MPLE, they expire in 50 days",
        ),
        (
            Origin("a new one", None, "…", None),
            "a new one, access key …, no expiry",
        ),
    ],
)
def test_credentials(monkeypatch: pytest.MonkeyPatch, origin: Origin, finding: str) -> None:
    """Provider, shortened key and expiry are shown, and nothing else of the keys."""
    monkeypatch.setattr(settings, "Credentials", lambda *_, **__: SimpleNamespace(origin=origin))
    result = settings.credentials(subject())
    assert (result.outcome, result.finding) == ("ok", finding)
    assert result.details["provider"] == origin.method
    assert ("expires_at" in result.details) == (origin.expires_at is not None)


@pytest.mark.parametrize(
    ("variables", "option", "finding", "source"),
    [
        ({}, None, "variables and the AWS configuration add nothing to the options", ""),
        (
            {"AWS_ENDPOINT_URL": "http://a.example", "AWS_MAX_ATTEMPTS": "2"},
            None,
            "endpoint by AWS_ENDPOINT_URL, 2 tries",
            "AWS_ENDPOINT_URL",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://a.example", "AWS_USE_FIPS_ENDPOINT": "true"},
            "http://b.example",
            "FIPS",
            "--endpoint-url",
        ),
        ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, None, "dual-stack", ""),
    ],
)
def test_configuration(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    option: str | None,
    finding: str,
    source: str,
) -> None:
    """Shows the settings besides the options, as far as they take effect."""
    isolate(tmp_path, monkeypatch)
    asked = subject(environ=variables, bucket=BucketConfig("bucket", endpoint_url=option))
    assert settings.configuration(asked).finding == finding
    assert asked.endpoint_source == source


def test_the_providers_are_botocores() -> None:
    """All names of providers exist in botocore."""
    providers = vars(botocore.credentials).values()
    methods = {getattr(each, "METHOD", None) for each in providers}
    assert set(settings.PROVIDERS) <= methods


@pytest.mark.parametrize(("given", "expected"), [(None, 12.5), (3.0, 3.0)])
def test_the_bandwidth_of_the_instance(
    monkeypatch: pytest.MonkeyPatch, given: float | None, expected: float
) -> None:
    """The measured rate is compared with the target of a mount."""
    monkeypatch.setattr(Instance, "bandwidth_gbps", lambda _: 12.5)
    monkeypatch.setattr(Instance, "region", lambda _: "eu-west-1")
    asked = subject(client=ClientConfig(throughput_gbps=given))
    settings.region(asked)
    assert asked.config.client.throughput_gbps == expected


def test_a_proxy_that_is_none() -> None:
    """The message names the wrong variable, but not its value, which may have a password."""
    where = BucketConfig("bucket", endpoint_url="http://store.example.com")
    asked = subject(bucket=where)
    asked.environ = {"HTTP_PROXY": "http://me:geheim@proxy:port"}
    asked.region = RegionChoice("us-east-1", "default")
    with pytest.raises(MountError, match="HTTP_PROXY is not the URL of a proxy") as caught:
        settings.endpoint(asked)
    assert "geheim" not in str(caught.value)
