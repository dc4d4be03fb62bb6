"""Endpoint settings from AWS variables and the AWS configuration; options override them.

Variables override the profile, and S3's own settings those for all services, as in other SDKs:
https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html
https://docs.aws.amazon.com/sdkref/latest/guide/feature-endpoints.html
https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from mountpoint.config import ENDPOINT_URL, BucketConfig, Config
from mountpoint.errors import MountError
from mountpoint.s3.aws.profile import open_session

if TYPE_CHECKING:
    from botocore.session import Session

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """The settings found. `endpoint_source` names the URL's origin; None means not set."""

    endpoint_url: str | None = None
    endpoint_source: str = ""
    dual_stack: bool = False
    fips: bool = False
    max_attempts: int | None = None
    ca_bundle: str | None = None

    def apply_to(self, config: Config) -> Config:
        """Return `config` with these settings where no option sets them. Raises MountError."""
        ca_bundle = config.client.ca_bundle or self.ca_bundle
        client = replace(config.client, max_tries=self.max_attempts, ca_bundle=ca_bundle)
        return replace(config, bucket=self._bucket(config.bucket), client=client)

    def _bucket(self, bucket: BucketConfig) -> BucketConfig:
        bucket = replace(bucket, fips=self.fips)
        if self.dual_stack and bucket.endpoint_url is None and self.endpoint_url is None:
            bucket = replace(bucket, dual_stack=True)
        if self.endpoint_url is None or bucket.endpoint_url is not None:
            return bucket
        if not ENDPOINT_URL.fullmatch(self.endpoint_url):
            raise MountError(
                f"'{self.endpoint_url}' of {self.endpoint_source} is not an endpoint URL",
                "correct it, for example to https://s3.example.com, or give --endpoint-url",
            )
        if bucket.transfer_acceleration:
            raise MountError(
                f"{self.endpoint_source} names an endpoint, but acceleration has its own",
                "omit --transfer-acceleration, or AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true",
            )
        log.info("endpoint", url=self.endpoint_url, source=self.endpoint_source)
        return replace(bucket, endpoint_url=self.endpoint_url)


def aws_settings(profile: str | None, environ: Mapping[str, str]) -> AwsSettings:
    """Return the settings. Raises MountError for an invalid value, rather than ignore it."""
    session = open_session(profile)
    url, source = None, ""
    if not _flag(session, environ, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        url, source = _endpoint_url(session, environ)
    return AwsSettings(
        endpoint_url=url,
        endpoint_source=source,
        dual_stack=_flag(session, environ, "AWS_USE_DUALSTACK_ENDPOINT"),
        fips=_flag(session, environ, "AWS_USE_FIPS_ENDPOINT"),
        max_attempts=_max_attempts(session, environ),
        ca_bundle=_ca_bundle(session),
    )


def _endpoint_url(session: "Session", environ: Mapping[str, str]) -> tuple[str | None, str]:
    """Return the endpoint's URL, if set, and the name of its origin."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if url := environ.get(name, ""):
            return url, name
    scoped = session.get_scoped_config()
    where = f"profile '{session.profile or 'default'}'"
    section = scoped.get("services")
    if section is not None:
        services = session.full_config.get("services", {}).get(section)
        if services is None:
            raise MountError(
                f"{where} names the section 'services {section}', which does not exist",
                "add the section to the AWS configuration, or remove its name",
            )
        of_s3 = services.get("s3", {})
        if isinstance(of_s3, dict) and of_s3.get("endpoint_url"):
            return str(of_s3["endpoint_url"]), f"section 'services {section}'"
    of_all = scoped.get("endpoint_url")
    return (str(of_all), where) if of_all else (None, "")


def _setting(session: "Session", environ: Mapping[str, str], variable: str) -> tuple[str, str]:
    """Return the variable's value, else the profile's setting of that name; and its origin."""
    if text := environ.get(variable, ""):
        return text, variable
    name = variable.removeprefix("AWS_").lower()
    return str(session.get_scoped_config().get(name, "")), f"{name} of the profile"


def _flag(session: "Session", environ: Mapping[str, str], variable: str) -> bool:
    text, source = _setting(session, environ, variable)
    if text.lower() not in ("", "true", "false"):
        raise MountError(
            f"{source} is {text!r}, neither 'true' nor 'false'", "set it to true, or unset it"
        )
    return text.lower() == "true"


def _ca_bundle(session: "Session") -> str | None:
    """Return the profile's CA bundle; AWS_CA_BUNDLE is handled like the option."""
    path = session.get_scoped_config().get("ca_bundle")
    return os.path.abspath(os.path.expanduser(str(path))) if path else None


def _max_attempts(session: "Session", environ: Mapping[str, str]) -> int | None:
    text, source = _setting(session, environ, "AWS_MAX_ATTEMPTS")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
        raise MountError(f"{source} is {text!r}, not a number from 1 to 1000", "correct it")
    return int(text)
