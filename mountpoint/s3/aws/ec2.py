"""The EC2 instance that this runs on, if it is one: its region, and how much its network brings.

Both are in one document of the instance metadata service, which is asked once, when first needed:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html
Nobody waits for it where the machine says that somebody else has made it; elsewhere for two seconds
at most. In a container it often cannot be reached; then the type is what the machine calls itself.
The figures (`bandwidth.tsv`) are EC2's own, and are those that AWS's mount-s3 takes: the
peak, which small instances have for some minutes at a time.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path

import structlog

from mountpoint.config import DEFAULT_GBPS, REGION, Config
from mountpoint.s3.aws.profile import open_session

log = structlog.get_logger(__name__)

#: For each of two requests (a token, the document): the service is one hop away and answers in
#: milliseconds, or is not there. botocore takes whole seconds only.
TIMEOUT_S = 1
DOCUMENT = "latest/dynamic/instance-identity/document"
ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"

#: What the hardware says of itself: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html
HARDWARE = Path("/sys/devices/virtual/dmi/id")
#: Of the instances that say which type they are, and of those before Nitro, which do not.
NITRO, EARLIER = "Amazon EC2", "Xen"


class Instance:
    """The instance, as the metadata service of `environ` and the AWS configuration describes it."""

    def __init__(self, profile: str | None, environ: Mapping[str, str]) -> None:
        # constants
        self._profile = profile
        self._environ = environ

    def apply_to(self, config: Config) -> Config:
        """Return the configuration with the throughput of the instance, unless one is given.

        For another store than AWS's, which an endpoint URL names, it is the default.
        """
        if config.client.throughput_gbps is not None:
            return config
        gbps = self.bandwidth_gbps() if config.bucket.endpoint_url is None else None
        return config.with_throughput(gbps or DEFAULT_GBPS)

    def region(self) -> str | None:
        """Return its region, or None."""
        region = self._identity.get("region")
        return region if isinstance(region, str) and REGION.fullmatch(region) else None

    def bandwidth_gbps(self) -> float | None:
        """Return what its network brings, or None where that is not known."""
        name = self._identity.get("instanceType") or _own_name()
        if not isinstance(name, str) or not name:
            log.debug("no instance type is known", gbps=DEFAULT_GBPS)
            return None
        gbps = bandwidth_gbps(name)
        if gbps is None:
            log.info(
                "the bandwidth of this instance type is not known",
                type=name,
                gbps=DEFAULT_GBPS,
                hint="--maximum-throughput-gbps sets it",
            )
        else:
            log.info("bandwidth of the instance", type=name, gbps=gbps)
        return gbps

    @cached_property
    def _identity(self) -> Mapping[str, object]:
        """What the service says; empty where nobody says anything."""
        vendor = _hardware("sys_vendor")
        if vendor not in ("", NITRO, EARLIER) and not self._environ.get(ENDPOINT_VARIABLE):
            log.debug("not on EC2", vendor=vendor)
            return {}
        try:
            found = json.loads(self._ask())
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _ask(self) -> str:
        """Return the document, or ""."""
        from botocore.exceptions import BotoCoreError
        from botocore.utils import IMDSFetcher, resolve_imds_endpoint_mode

        class Fetcher(IMDSFetcher):  # type: ignore[misc]  # botocore has no types
            def document(self) -> str:
                token = self._fetch_metadata_token()
                return str(self._get_request(DOCUMENT, None, token).text)

        session = open_session(self._profile)
        names = ("ec2_metadata_service_endpoint", "ec2_metadata_v1_disabled")
        settings = {name: session.get_config_variable(name) for name in names}
        settings["ec2_metadata_service_endpoint_mode"] = resolve_imds_endpoint_mode(session)
        try:
            fetcher = Fetcher(TIMEOUT_S, 1, env=dict(self._environ), config=settings)
            return fetcher.document()
        except (BotoCoreError, IMDSFetcher._RETRIES_EXCEEDED_ERROR_CLS, ValueError) as error:
            log.debug("no instance metadata", reason=str(error) or type(error).__name__)
            return ""


def bandwidth_gbps(instance_type: str) -> float | None:
    """Return the network bandwidth of an EC2 instance type, or None for one that is not known."""
    table = resources.files(__package__).joinpath("bandwidth.tsv").read_text()
    for line in table.splitlines():
        name, _, gbps = line.partition("\t")
        if name == instance_type:
            return float(gbps)
    return None


def _own_name() -> str:
    """Return the type that this machine says it is, or "".

    https://github.com/systemd/systemd/commit/f90eea7d18d9ebe88e6a66cd7a86b618def8945d
    """
    return _hardware("product_name") if _hardware("sys_vendor") == NITRO else ""


def _hardware(name: str) -> str:
    """Return what this machine says of itself; "" where it does not."""
    try:
        return (HARDWARE / name).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
