"""Checks of configuration, credentials, region and endpoint, from options and environment."""

from datetime import UTC, datetime
from functools import partial

from mountpoint.checks.checklist import Detail, Result, ok, skipped
from mountpoint.checks.subject import Subject, known, within
from mountpoint.checks.words import duration
from mountpoint.config import Config
from mountpoint.s3.aws import proxy
from mountpoint.s3.aws.credentials import Credentials
from mountpoint.s3.aws.ec2 import Instance
from mountpoint.s3.aws.endpoint import RegionChoice, RegionSource, resolve
from mountpoint.s3.aws.settings import aws_settings
from mountpoint.s3.connect import first_region

#: Seconds; a credential_process may wait for a person who has left.
CREDENTIALS_S = 60.0
#: Seconds, two of them for the instance metadata.
REGION_S = 10.0

#: botocore's names of the providers, in words; "{}" is the profile.
PROVIDERS = {
    "env": "environment variables",
    "shared-credentials-file": "profile '{}' of the credentials file",
    "config-file": "profile '{}' of the configuration file",
    "sso": "SSO, profile '{}'",
    "login": "login session, profile '{}'",
    "assume-role": "assumed role, profile '{}'",
    "assume-role-with-web-identity": "web identity",
    "custom-process": "credential_process of profile '{}'",
    "container-role": "container",
    "iam-role": "instance metadata (IMDS)",
}
REGION_SOURCES: dict[RegionSource, str] = {
    "option": "named by --region",
    "ARN": "named by the ARN",
    "environment": "named by the environment",
    "profile": "named by the profile",
    "instance metadata": "named by the instance metadata",
    "bucket": "named by the bucket",
    "default": "not configured: this region first, and S3 names the bucket's own",
}


def configuration(subject: Subject) -> Result:
    """Add the variables and the AWS configuration to the options."""
    config = subject.config
    said = aws_settings(config.credentials.profile, subject.environ)
    subject.config = said.apply_to(config)
    additions = []
    if config.bucket.endpoint_url is not None:
        subject.endpoint_source = "--endpoint-url"
    elif said.endpoint_url is not None:
        subject.endpoint_source = said.endpoint_source
        additions.append(f"endpoint by {said.endpoint_source}")
    if said.dual_stack:
        additions.append("dual-stack")
    if said.fips:
        additions.append("FIPS")
    if said.max_attempts is not None:
        additions.append(f"{said.max_attempts} tries")
    nothing = "variables and the AWS configuration add nothing to the options"
    return ok(", ".join(additions) or nothing)


def credentials(subject: Subject) -> Result:
    """Get the keys as mounting does."""
    config = subject.config.credentials
    if config.no_sign_request:
        return skipped("--no-sign-request")
    what, hint = "the source of the credentials", "run the profile's credential_process by hand"
    look_up = partial(Credentials, config, ca_bundle=subject.config.client.ca_bundle)
    subject.credentials = within(CREDENTIALS_S, what, hint, look_up)
    origin = subject.credentials.origin
    profile = origin.profile or "default"
    words = PROVIDERS.get(origin.method, origin.method or "unknown").format(profile)
    details: dict[str, Detail] = {
        "provider": origin.method,
        "profile": profile,
        "access_key_id": origin.access_key_id,
    }
    end = "no expiry"
    if origin.expires_at is not None:
        left_s = (origin.expires_at - datetime.now(UTC)).total_seconds()
        details["expires_at"] = origin.expires_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        end = f"they expire in {duration(left_s)}"
    return ok(f"{words}, access key {origin.access_key_id}, {end}", **details)


def region(subject: Subject) -> Result:
    """Find the region, its source, and this machine's network bandwidth."""
    config = subject.config
    instance = Instance(config.credentials.profile, subject.environ)

    def ask() -> tuple[RegionChoice, Config]:
        choice = first_region(config.bucket, config.credentials, subject.environ, instance)
        return choice, instance.apply_to(config)

    what, hint = "the setting that names the region", "give it with --region"
    subject.region, subject.config = within(REGION_S, what, hint, ask)
    name, source = subject.region
    return ok(f"{name}, {REGION_SOURCES[source]}", region=name, source=source)


def endpoint(subject: Subject) -> Result:
    """Resolve the endpoint."""
    found = resolve(subject.config.bucket, known(subject.region).region)
    subject.endpoint = found
    source = subject.endpoint_source or "S3's rules"
    style = "path" if found.base_path else "virtual-host"
    url = f"{found.scheme}://{found.host}"
    subject.proxy = proxy.settle(found.scheme, found.host, subject.environ)
    details: dict[str, Detail] = {"url": url, "style": style, "source": source}
    through = ""
    if subject.proxy is not None:
        details["proxy"] = str(subject.proxy)
        through = f", through the proxy {subject.proxy}"
    return ok(f"{url}, {style} style, by {source}{through}", **details)
