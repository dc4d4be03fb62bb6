"""The endpoint of a bucket: its region, host, path and signing algorithm.

S3's own rule set (`endpoint-rule-set-1`, shipped with botocore) decides; this module evaluates it
and explains its refusals. Only the bucket itself knows its region, so the caller starts with
`configured_region`, or us-east-1 if that is None, and resolves again once S3 has named the
bucket's region.

Importing botocore takes 0.3 seconds, so functions import it where they need it; mistakes in plain
options are then reported without that delay.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

from mountpoint.config import REGION, BucketConfig, CredentialsConfig
from mountpoint.errors import MountError
from mountpoint.s3.aws.ec2 import Instance
from mountpoint.s3.aws.profile import open_session

SigningAlgorithm = Literal["v4", "v4a", "v4-s3express"]
RegionSource = Literal[
    "option", "ARN", "environment", "profile", "instance metadata", "bucket", "default"
]

#: In order of preference. Outposts offer both of the first two. v4a is asymmetric and ten times as
#: slow per request; only endpoints that span regions need it.
_ALGORITHMS: dict[str, SigningAlgorithm] = {
    "sigv4": "v4",
    "sigv4-s3express": "v4-s3express",
    "sigv4a": "v4a",
}
#: Replaces a bucket name that the rule set would mistake for a directory bucket's.
_STAND_IN = "no-directory-bucket"
_DEFAULT_PORTS = {"http": 80, "https": 443}
#: https://developers.cloudflare.com/r2/objects/multipart-objects/
_EQUAL_PARTS = ".r2.cloudflarestorage.com"
#: Region names of other stores ("garage", "auto"), as in `BucketConfig`.
_ANY_REGION = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The destination of requests. `host` includes the port unless it is the scheme's default.

    `base_path` is "" if the bucket is in the host name, else the path of the endpoint's URL and
    "/bucket". `region` is the one in signatures, "*" for multi-region access points. `directory`:
    the bucket can only be a directory bucket of AWS. `aws`: the endpoint belongs to AWS.
    `lists_in_order` is false for every bucket that may be a directory bucket.
    """

    scheme: str
    host: str
    base_path: str
    region: str
    signing_name: str
    signing_algorithm: SigningAlgorithm
    directory: bool = False
    lists_in_order: bool = True
    aws: bool = False

    @property
    def has_sessions(self) -> bool:
        """Whether session keys, valid for some minutes, sign requests, as for directory buckets."""
        return self.signing_algorithm == "v4-s3express"

    @property
    def wants_equal_parts(self) -> bool | None:
        """Whether all parts of an upload except the last must have one size; None if unknown."""
        if self.aws or self.directory:
            return False
        name = self.host.rpartition(":")[0] or self.host
        return True if name.lower().endswith(_EQUAL_PARTS) else None


class RegionChoice(NamedTuple):
    """A region and the setting that named it."""

    region: str
    source: RegionSource


def believable_region(text: str | None) -> str | None:
    """Return `text` if it is a well-formed AWS region, else None: servers are not trusted."""
    return text if text is not None and REGION.fullmatch(text) else None


# --- Region ---


def configured_region(
    bucket: BucketConfig,
    credentials_config: CredentialsConfig,
    environ: Mapping[str, str],
    instance: Instance | None = None,
) -> RegionChoice | None:
    """Return the region from the options and the environment, or None.

    The order is: `--region`, the ARN, AWS_REGION, AWS_DEFAULT_REGION, the profile, and the instance
    metadata, unless an endpoint is given or AWS_EC2_METADATA_DISABLED is true. That last step takes
    two seconds at most. The profile files are always the process's own, not those of `environ`.
    """
    if bucket.region is not None:
        return RegionChoice(bucket.region, "option")
    if (region := _region_of_arn(bucket.name)) is not None:
        return RegionChoice(region, "ARN")
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if region := environ.get(variable, ""):
            return RegionChoice(_checked(bucket, region, variable), "environment")

    session = open_session(credentials_config.profile)
    if region := session.get_scoped_config().get("region"):
        where = f"the region of profile '{session.profile or 'default'}'"
        return RegionChoice(_checked(bucket, str(region), where), "profile")
    if bucket.endpoint_url is None:
        instance = instance or Instance(credentials_config.profile, environ)
        if (region := instance.region()) is not None:
            return RegionChoice(region, "instance metadata")
    return None  # the bucket's answer will name it


def _region_of_arn(name: str) -> str | None:
    if not name.startswith("arn:"):
        return None
    return believable_region(name.split(":")[3])


def _checked(bucket: BucketConfig, region: str, where: str) -> str:
    form = REGION if bucket.endpoint_url is None else _ANY_REGION
    if not form.fullmatch(region):
        raise MountError(
            f"{region!r} ({where}) is not a region name", "correct it, or use --region"
        )
    return region


# --- Endpoint ---


@cache
def _rules() -> Any:
    from botocore.endpoint_provider import EndpointProvider
    from botocore.loaders import Loader

    loader = Loader()
    return EndpointProvider(
        loader.load_service_model("s3", "endpoint-rule-set-1"), loader.load_data("partitions")
    )


def resolve(bucket: BucketConfig, region: str) -> Endpoint:
    """Return the endpoint of `bucket` in `region`.

    `bucket.bucket_type` overrides the rule set's classification as far as no data can be lost.
    "directory" makes listings unordered, but no request is sent that only AWS's directory buckets
    support. "general-purpose" is for buckets of other stores with such a name. Raises MountError
    for a combination that S3 does not offer; it names the option to change.
    """
    endpoint = _resolve(bucket, region)
    if bucket.bucket_type == "directory":
        return replace(endpoint, lists_in_order=False)
    if bucket.bucket_type is None or not endpoint.has_sessions:
        return endpoint
    if endpoint.directory:
        raise MountError(
            f"'{bucket.name}' names a directory bucket, and {endpoint.host} serves no others",
            "omit --bucket-type",
        )
    plain = _resolve(replace(bucket, name=_STAND_IN), region)
    return replace(
        plain,
        host=plain.host.replace(_STAND_IN, bucket.name),
        base_path=plain.base_path.replace(_STAND_IN, bucket.name),
    )


def _resolve(bucket: BucketConfig, region: str) -> Endpoint:
    """Return the rule set's endpoint."""
    from botocore.exceptions import BotoCoreError

    if ":" in bucket.name and not bucket.name.startswith("arn:") and bucket.endpoint_url is None:
        raise MountError(
            f"'{bucket.name}' is not the name of a bucket at AWS",
            "TENANT:BUCKET is Ceph's form: name the store with --endpoint-url",
        )
    try:
        answer = _rules().resolve_endpoint(
            Bucket=bucket.name,
            Region=region,
            UseFIPS=bucket.fips,
            UseDualStack=bucket.dual_stack,
            Accelerate=bucket.transfer_acceleration,
            ForcePathStyle=bucket.force_path_style or _has_no_subdomains(bucket),
            # Treat us-east-1 like any other region; do not use the old global endpoint.
            UseGlobalEndpoint=False,
            # An ARN includes its region, so it works with any --region.
            UseArnRegion=True,
            DisableMultiRegionAccessPoints=False,
            **({} if bucket.endpoint_url is None else {"Endpoint": bucket.endpoint_url}),
        )
    except BotoCoreError as error:
        raise _refused(bucket, region, str(error)) from None
    url = urlsplit(answer.url)
    schemes = {scheme["name"]: scheme for scheme in answer.properties["authSchemes"]}
    name = next(name for name in _ALGORITHMS if name in schemes)
    signing = schemes[name]
    express = name == "sigv4-s3express"
    aws = bucket.endpoint_url is None or _is_aws(url)
    return Endpoint(
        scheme=url.scheme,
        host=_host(url.scheme, url.netloc, url.port),
        base_path=url.path.rstrip("/"),
        region=signing.get("signingRegion") or ",".join(signing["signingRegionSet"]),
        signing_name=signing["signingName"],
        signing_algorithm=_ALGORITHMS[name],
        directory=express
        and aws
        and (bucket.endpoint_url is None or ".s3express-" in (url.hostname or "")),
        # Directory buckets list in no order, and do not support start-after:
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
        lists_in_order=not express,
        aws=aws,
    )


def _is_aws(url: SplitResult) -> bool:
    """Whether a custom endpoint is AWS's: its name ends in amazonaws.com, which TLS proves.

    Interface endpoints of a VPC have such hosts. Those of S3 Express also contain ".s3express-".
    Both are checked because the rule set classifies by the bucket's name alone, and another store
    may have a bucket with such a name.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-express-networking.html
    """
    host = url.hostname or ""
    return url.scheme == "https" and host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _host(scheme: str, netloc: str, port: int | None) -> str:
    if port is not None and port == _DEFAULT_PORTS.get(scheme):
        return netloc.removesuffix(f":{port}")
    return netloc


def _has_no_subdomains(bucket: BucketConfig) -> bool:
    """Whether the bucket's name cannot be put in front of the endpoint's host.

    The rule set handles IP addresses. "localhost" and container names ("minio") do not resolve with
    a subdomain either. A store below a path shares its host with others.
    """
    if bucket.endpoint_url is None or bucket.name.startswith("arn:"):
        return False
    url = urlsplit(bucket.endpoint_url)
    if url.path.strip("/"):
        return True
    host = url.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host.rstrip(".")
    return True


#: (word in the rule set's message, option, hint). The first entry applies whose word is in the
#: message and whose option was given.
_HINTS: list[tuple[str, str, str]] = [
    ("accelerate", "transfer_acceleration", "omit --transfer-acceleration"),
    ("path-style", "force_path_style", "omit --force-path-style"),
    ("dual-stack", "dual_stack", "omit --dual-stack"),
    ("fips", "", "unset AWS_USE_FIPS_ENDPOINT"),
    ("partition", "region", "omit --region: the ARN names its region"),
    (
        "partition",
        "",
        "the ARN belongs to another AWS partition than the region: give --region",
    ),
    (
        "arn",
        "",
        "an access point's ARN has the form arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME;"
        " a bucket is given by its name alone",
    ),
    ("s3express", "", "a directory bucket's name has the form NAME--ZONE--x-s3"),
    ("custom endpoint", "endpoint_url", "correct --endpoint-url"),
    ("region", "", "correct --region"),
]


def _refused(bucket: BucketConfig, region: str, message: str) -> MountError:
    lower = message.lower()
    hint = next(
        (
            hint
            for word, option, hint in _HINTS
            if word in lower and (not option or getattr(bucket, option))
        ),
        "check the bucket's name",
    )
    first_line = (message.strip() or "no endpoint").splitlines()[0].rstrip(".")
    return MountError(f"S3 has no endpoint for '{bucket.name}' in {region}: {first_line}", hint)
