"""Endpoints for every kind of bucket and option, and the source of the region."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mountpoint.config import BucketConfig, CredentialsConfig
from mountpoint.errors import MountError
from mountpoint.s3.aws.endpoint import (
    Endpoint,
    RegionChoice,
    SigningAlgorithm,
    believable_region,
    configured_region,
    resolve,
)
from tests.unit.aws_fakes import Service, isolate, serving

ACCESS_POINT = "arn:aws:s3:us-west-2:123456789012:accesspoint/myap"
MULTI_REGION = "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap"
OUTPOST = "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1234567890123456/accesspoint/ap"
OBJECT_LAMBDA = "arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint/mine"
CHINA = "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/myap"
DIRECTORY = "bkt--usw2-az1--x-s3"
AWS = "amazonaws.com"


def where(
    name: str, region: str = "us-east-1", fips: bool = False, /, **options: object
) -> Endpoint:
    return resolve(BucketConfig(name, fips=fips, **options), region)  # type: ignore[arg-type]


# --- AWS ---


@pytest.mark.parametrize(
    ("endpoint", "host", "base_path", "region"),
    [
        (lambda: where("bkt"), f"bkt.s3.us-east-1.{AWS}", "", "us-east-1"),
        (lambda: where("bkt", "eu-west-1"), f"bkt.s3.eu-west-1.{AWS}", "", "eu-west-1"),
        (lambda: where("b.with.dots"), f"s3.us-east-1.{AWS}", "/b.with.dots", "us-east-1"),
        (lambda: where("Upper_case"), f"s3.us-east-1.{AWS}", "/Upper_case", "us-east-1"),
        (lambda: where("bkt", force_path_style=True), f"s3.us-east-1.{AWS}", "/bkt", "us-east-1"),
        (lambda: where("bkt", "cn-north-1"), f"bkt.s3.cn-north-1.{AWS}.cn", "", "cn-north-1"),
        (lambda: where("bkt", "us-gov-west-1"), f"bkt.s3.us-gov-west-1.{AWS}", "", "us-gov-west-1"),
        (
            lambda: where("bkt", "us-gov-west-1", True),
            f"bkt.s3-fips.us-gov-west-1.{AWS}",
            "",
            "us-gov-west-1",
        ),
        (
            lambda: where("bkt", dual_stack=True),
            f"bkt.s3.dualstack.us-east-1.{AWS}",
            "",
            "us-east-1",
        ),
        (
            lambda: where("bkt", "us-east-2", True, dual_stack=True),
            f"bkt.s3-fips.dualstack.us-east-2.{AWS}",
            "",
            "us-east-2",
        ),
        (
            lambda: where("bkt", "eu-west-1", transfer_acceleration=True),
            f"bkt.s3-accelerate.{AWS}",
            "",
            "eu-west-1",
        ),
        (
            lambda: where("bkt", transfer_acceleration=True, dual_stack=True),
            f"bkt.s3-accelerate.dualstack.{AWS}",
            "",
            "us-east-1",
        ),
        (
            lambda: where("myap-metadata123-s3alias"),
            f"myap-metadata123-s3alias.s3.us-east-1.{AWS}",
            "",
            "us-east-1",
        ),
        (
            lambda: where(ACCESS_POINT),
            f"myap-123456789012.s3-accesspoint.us-west-2.{AWS}",
            "",
            "us-west-2",
        ),
        (
            lambda: where(CHINA, "cn-north-1"),
            f"myap-123456789012.s3-accesspoint.cn-north-1.{AWS}.cn",
            "",
            "cn-north-1",
        ),
    ],
)
def test_plain_endpoints(
    endpoint: Callable[[], Endpoint], host: str, base_path: str, region: str
) -> None:
    """Names, aliases, ARNs and options give AWS's documented host, path and signing region."""
    assert endpoint() == Endpoint("https", host, base_path, region, "s3", "v4", aws=True)


@pytest.mark.parametrize(
    ("endpoint", "host", "region", "name", "algorithm"),
    [
        (lambda: where(MULTI_REGION), f"mfzwi23gnjvgw.mrap.accesspoint.s3-global.{AWS}", "*", "s3",
         "v4a"),
        (lambda: where(OUTPOST), f"ap-123456789012.op-1234567890123456.s3-outposts.us-west-2.{AWS}",
         "us-west-2", "s3-outposts", "v4"),
        (lambda: where(OBJECT_LAMBDA), f"mine-123456789012.s3-object-lambda.us-west-2.{AWS}",
         "us-west-2", "s3-object-lambda", "v4"),
        (lambda: where(DIRECTORY, "us-west-2"), f"{DIRECTORY}.s3express-usw2-az1.us-west-2.{AWS}",
         "us-west-2", "s3express", "v4-s3express"),
        (lambda: where(DIRECTORY, "us-west-2", True),
         f"{DIRECTORY}.s3express-fips-usw2-az1.us-west-2.{AWS}", "us-west-2", "s3express",
         "v4-s3express"),
    ],
)  # fmt: skip
def test_other_ways_of_signing(
    endpoint: Callable[[], Endpoint], host: str, region: str, name: str, algorithm: SigningAlgorithm
) -> None:
    """Multi-region access points, Outposts, Object Lambda and directory buckets differ."""
    directory = algorithm == "v4-s3express"
    assert endpoint() == Endpoint(
        "https",
        host,
        "",
        region,
        name,
        algorithm,
        directory=directory,
        lists_in_order=not directory,
        aws=True,
    )


# --- Bucket types ---


@pytest.mark.parametrize(
    ("url", "path_style", "host", "base_path"),
    [
        ("http://127.0.0.1:9000", False, "127.0.0.1:9000", f"/{DIRECTORY}"),
        ("https://s3.example.com", False, f"{DIRECTORY}.s3.example.com", ""),
        ("https://s3.example.com", True, "s3.example.com", f"/{DIRECTORY}"),
    ],
)
def test_general_purpose(url: str, path_style: bool, host: str, base_path: str) -> None:
    """Another store's bucket with a directory bucket's name is treated like all its buckets."""
    options = {"endpoint_url": url, "force_path_style": path_style}
    assert where(DIRECTORY, **options).signing_algorithm == "v4-s3express"
    endpoint = where(DIRECTORY, bucket_type="general-purpose", **options)
    scheme = url.partition(":")[0]
    assert endpoint == Endpoint(scheme, host, base_path, "us-east-1", "s3", "v4")


def test_general_purpose_is_not_believed_of_aws() -> None:
    """At AWS all such names are directory buckets; all other buckets are what they are."""
    with pytest.raises(MountError, match="names a directory bucket") as caught:
        where(DIRECTORY, "us-west-2", bucket_type="general-purpose")
    assert caught.value.hint == "omit --bucket-type"
    assert where("bkt", bucket_type="general-purpose") == where("bkt")


@pytest.mark.parametrize("url", [None, "https://s3.example.com"])
def test_directory(url: str | None) -> None:
    """Listings have no order, but requests that would empty files elsewhere are not sent."""
    plain = where("bkt", endpoint_url=url)
    endpoint = where("bkt", endpoint_url=url, bucket_type="directory")
    assert (plain.lists_in_order, endpoint.lists_in_order) == (True, False)
    assert not endpoint.directory
    assert (endpoint.host, endpoint.signing_algorithm) == (plain.host, "v4")
    assert where(DIRECTORY, bucket_type="directory") == where(DIRECTORY)


# --- Other stores ---


@pytest.mark.parametrize(
    ("url", "path_style", "host", "base_path"),
    [
        ("http://127.0.0.1:8333", False, "127.0.0.1:8333", "/bkt"),
        ("http://[::1]:9000", False, "[::1]:9000", "/bkt"),
        ("http://localhost:9000/", False, "localhost:9000", "/bkt"),
        ("http://minio:9000", False, "minio:9000", "/bkt"),
        ("https://s3.example.com", False, "bkt.s3.example.com", ""),
        ("https://s3.example.com/", False, "bkt.s3.example.com", ""),
        ("https://s3.example.com:443", False, "bkt.s3.example.com", ""),
        ("http://s3.example.com:443", False, "bkt.s3.example.com:443", ""),
        ("https://s3.example.com:9000", True, "s3.example.com:9000", "/bkt"),
    ],
)
def test_custom_endpoints(url: str, path_style: bool, host: str, base_path: str) -> None:
    """A host with dots gets the bucket in front; IP addresses and short names get a path."""
    endpoint = where("bkt", endpoint_url=url, force_path_style=path_style)
    scheme = url.partition(":")[0]
    assert endpoint == Endpoint(scheme, host, base_path, "us-east-1", "s3", "v4")


def test_custom_endpoint_with_its_own_region() -> None:
    """Another store's region name is signed unchanged."""
    endpoint = where("bkt", "garage", endpoint_url="https://s3.example.com")
    assert endpoint.region == "garage"


@pytest.mark.parametrize(
    ("url", "aws"),
    [
        ("https://bucket.vpce-1a2b-3c4d.s3.us-east-1.vpce.amazonaws.com", True),
        ("https://s3.cn-north-1.amazonaws.com.cn", True),
        ("http://s3.us-east-1.amazonaws.com", False),  # nothing proves who that is
        ("https://s3.example.com", False),
        ("https://amazonaws.com.example.com", False),
    ],
)
def test_custom_endpoints_of_aws(url: str, aws: bool) -> None:
    """Hosts below AWS's own names are AWS's, with TLS."""
    assert where("bkt", endpoint_url=url).aws is aws


@pytest.mark.parametrize(
    ("url", "equal"),
    [
        (None, False),
        ("https://s3.us-east-1.amazonaws.com", False),
        ("https://1a2b3c.r2.cloudflarestorage.com", True),
        ("https://1a2b3c.eu.r2.cloudflarestorage.com:8443", True),
        ("https://r2.cloudflarestorage.com.example.com", None),
        ("http://127.0.0.1:9000", None),
    ],
)
def test_endpoints_that_want_parts_of_one_size(url: str | None, equal: bool | None) -> None:
    """AWS does not, Cloudflare R2 does; for others it is unknown."""
    assert where("bkt", endpoint_url=url).wants_equal_parts is equal


def test_custom_endpoint_of_an_access_point() -> None:
    """An access point behind a private endpoint keeps its own host name and region."""
    endpoint = where(ACCESS_POINT, endpoint_url="https://vpce-1.example.com")
    assert endpoint.host == "myap-123456789012.vpce-1.example.com"
    assert endpoint.region == "us-west-2"


# --- What S3 refuses ---


@pytest.mark.parametrize(
    ("name", "region", "fips", "options", "hint"),
    [
        ("a.b", "us-east-1", False, {"transfer_acceleration": True}, "--transfer-acceleration"),
        ("bkt", "us-east-1", True, {"transfer_acceleration": True}, "--transfer-acceleration"),
        ("bkt", "cn-north-1", False, {"transfer_acceleration": True}, "--transfer-acceleration"),
        (DIRECTORY, "us-west-2", False, {"transfer_acceleration": True}, "acceleration"),
        (ACCESS_POINT, "us-west-2", False, {"force_path_style": True}, "--force-path-style"),
        (MULTI_REGION, "us-west-2", False, {"dual_stack": True}, "--dual-stack"),
        (MULTI_REGION, "us-west-2", True, {}, "AWS_USE_FIPS_ENDPOINT"),
        ("bkt", "cn-north-1", True, {}, "AWS_USE_FIPS_ENDPOINT"),
        (CHINA, "us-east-1", False, {"region": "us-east-1"}, "omit --region"),
        (CHINA, "us-east-1", False, {}, "give --region"),
        ("arn:aws:s3:::bucket", "us-east-1", False, {}, "accesspoint/NAME"),
        ("arn:aws:s3:us-west-2:123456789012:bucket/b", "us-west-2", False, {}, "name alone"),
        ("bkt", "us-east-1", True, {"endpoint_url": "https://x.example"}, "FIPS"),
        ("bkt", "us-east-1", False, {"endpoint_url": "https://x.example", "dual_stack": True},
         "--dual-stack"),
        ("b--x-s3", "us-east-1", False, {}, "NAME--ZONE--x-s3"),
    ],
)  # fmt: skip
def test_refusals(
    name: str, region: str, fips: bool, options: dict[str, object], hint: str
) -> None:
    """Unsupported combinations: a line with the reason, and one with the option to change."""
    with pytest.raises(MountError) as caught:
        where(name, region, fips, **options)
    assert name in caught.value.what
    assert hint in caught.value.hint
    assert "\n" not in caught.value.what


# --- Small functions ---


@pytest.mark.parametrize(
    ("text", "believed"),
    [
        ("us-east-1", True),
        ("us-gov-west-1", True),
        ("ap-southeast-7", True),
        ("eusc-de-east-1", True),
        ("us-east-1\n", False),
        ("us-east-1.evil.example", False),
        ("evil/", False),
        ("", False),
        (None, False),
    ],
)
def test_believable_region(text: str | None, believed: bool) -> None:
    """A region from a server must be well-formed."""
    assert believable_region(text) == (text if believed else None)


def test_botocore_is_imported_late() -> None:
    """Importing the module, and using options alone, does not import botocore."""
    code = (
        "import sys; from mountpoint.config import *; from mountpoint.s3.aws import endpoint;"
        "endpoint.configured_region(BucketConfig('bkt', region='us-east-1'),"
        " CredentialsConfig(), {}); sys.exit('botocore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- Where the region comes from ---


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return isolate(tmp_path, monkeypatch)


NO_METADATA = {"AWS_EC2_METADATA_DISABLED": "true"}


def found(
    environ: dict[str, str] | None = None,
    *,
    name: str = "bkt",
    profile: str | None = None,
    **options: object,
) -> RegionChoice | None:
    bucket = BucketConfig(name, **options)  # type: ignore[arg-type]
    return configured_region(bucket, CredentialsConfig(profile), {**NO_METADATA, **(environ or {})})


def test_region_order(home: Path) -> None:
    """The order is option, ARN, AWS_REGION, AWS_DEFAULT_REGION, profile."""
    (home / "config").write_text("[default]\nregion = eu-west-3\n")
    both = {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}
    assert found(both, name=ACCESS_POINT, region="eu-central-1") == ("eu-central-1", "option")
    assert found(both, name=ACCESS_POINT) == ("us-west-2", "ARN")
    assert found(both, name=MULTI_REGION) == ("eu-west-1", "environment")
    assert found(both) == ("eu-west-1", "environment")
    assert found({**both, "AWS_REGION": ""}) == ("eu-west-2", "environment")
    assert found() == ("eu-west-3", "profile")


def test_region_of_a_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--profile and AWS_PROFILE choose the profile with the region."""
    (home / "config").write_text(
        "[default]\nregion = eu-west-3\n[profile work]\nregion = cn-north-1\n[profile bare]\n"
    )
    assert found(profile="work") == ("cn-north-1", "profile")
    assert found(profile="bare") is None
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert found() == ("cn-north-1", "profile")


@pytest.mark.usefixtures("home")
def test_no_region_anywhere() -> None:
    """Without any configuration the region is None: the bucket will name it."""
    assert found() is None


def test_unknown_profile(home: Path) -> None:
    """An unknown profile is an error that names the known ones."""
    (home / "config").write_text("[default]\n[profile work]\n")
    (home / "credentials").write_text("[home]\naws_access_key_id = a\n")
    with pytest.raises(MountError, match="no profile 'wrk'") as caught:
        found(profile="wrk")
    assert all(name in caught.value.hint for name in ("default", "work", "home"))


def test_unreadable_configuration(home: Path) -> None:
    """The message names a configuration file that cannot be parsed."""
    (home / "config").write_text("this is no configuration\n")
    with pytest.raises(MountError) as caught:
        found()
    assert str(home / "config") in caught.value.what


def test_senseless_region(home: Path) -> None:
    """An invalid region is reported with its source; another store's may have any name."""
    with pytest.raises(MountError, match="AWS_REGION"):
        found({"AWS_REGION": "us east"})
    (home / "config").write_text("[default]\nregion = garage\n")
    with pytest.raises(MountError, match="profile 'default'"):
        found()
    assert found(endpoint_url="https://s3.example.com") == ("garage", "profile")


# --- Instance metadata ---


class Metadata(Service):
    """The instance metadata service, version 2."""

    def answer(self, body: str) -> tuple[int, str]:
        return 200, "token" if self.command == "PUT" else '{"region": "eu-west-1"}'


@pytest.fixture
def metadata(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Metadata]]:
    with serving(Metadata) as (url, service):
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        yield service


def test_region_of_the_instance(metadata: type[Metadata]) -> None:
    """Without any other setting, the instance's region is tried first."""
    choice = configured_region(BucketConfig("bkt"), CredentialsConfig(), os.environ)
    assert choice == ("eu-west-1", "instance metadata")
    assert metadata.requests


def test_metadata_is_not_asked(metadata: type[Metadata]) -> None:
    """Disabled metadata, a custom endpoint or a known region send no request."""
    url = "http://127.0.0.1:1"
    signer = CredentialsConfig()
    assert configured_region(BucketConfig("bkt"), signer, NO_METADATA) is None
    assert configured_region(BucketConfig("bkt", endpoint_url=url), signer, {}) is None
    assert configured_region(BucketConfig("bkt"), signer, {"AWS_REGION": "us-east-2"}) is not None
    assert metadata.requests == []
