"""The EC2 instance that this runs on, if any: its region and its network bandwidth.

Both come from one document of the instance metadata service, fetched once, at first use:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html
A machine whose hardware names another vendor skips this; others wait two seconds at most. A
container often cannot reach the service; the type then comes from the hardware description. The
bandwidths (`bandwidth.tsv`) are EC2's own figures, as in AWS's mount-s3: the peak, which small
instances reach for some minutes at a time.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path

import structlog

from mountpoint.config import REGION, Config
from mountpoint.s3.aws.profile import open_session

log = structlog.get_logger(__name__)

#: For each of two requests (token, document). The service is one hop away: it answers within
#: milliseconds or does not exist. botocore takes whole seconds only.
TIMEOUT_S = 1
DOCUMENT = "latest/dynamic/instance-identity/document"
ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"

#: The hardware description: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html
HARDWARE = Path("/sys/devices/virtual/dmi/id")
#: Vendors: Nitro instances, whose product name is their type, and older instances without it.
NITRO, EARLIER = "Amazon EC2", "Xen"


class Instance:
    """The EC2 instance, as the metadata service describes it.

    `environ` and the AWS configuration say how to reach the service.
    """

    def __init__(self, profile: str | None, environ: Mapping[str, str]) -> None:
        # constants
        self._profile = profile
        self._environ = environ

    def apply_to(self, config: Config) -> Config:
        """Return the configuration with the instance's throughput, unless an option sets one.

        With an endpoint URL, which means another store than AWS's, it is the client's default.
        """
        if config.client.throughput_gbps is not None:
            return config
        gbps = self.bandwidth_gbps() if config.bucket.endpoint_url is None else None
        return config.with_throughput(gbps or config.client.link_gbps)

    def region(self) -> str | None:
        """Return the instance's region, or None."""
        region = self._identity.get("region")
        return region if isinstance(region, str) and REGION.fullmatch(region) else None

    def bandwidth_gbps(self) -> float | None:
        """Return the instance's network bandwidth in Gbit/s, or None if unknown."""
        name = self._identity.get("instanceType") or _own_name()
        if not isinstance(name, str) or not name:
            log.debug("the instance type is not known")
            return None
        gbps = bandwidth_gbps(name)
        if gbps is None:
            log.info(
                "the bandwidth of this instance type is not known",
                type=name,
                hint="--maximum-throughput-gbps sets it",
            )
        else:
            log.info("bandwidth of the instance", type=name, gbps=gbps)
        return gbps

    @cached_property
    def _identity(self) -> Mapping[str, object]:
        """The parsed document; empty if there is none."""
        vendor = _hardware("sys_vendor")
        if vendor not in ("", NITRO, EARLIER) and not self._environ.get(ENDPOINT_VARIABLE):
            log.debug("not on EC2", vendor=vendor)
            return {}
        try:
            found = json.loads(self._ask())
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _ask(self) -> str:
        """Fetch the document; return "" if there is none."""
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
    """Return the network bandwidth of an EC2 instance type in Gbit/s, or None if unknown."""
    table = resources.files(__package__).joinpath("bandwidth.tsv").read_text()
    for line in table.splitlines():
        name, _, gbps = line.partition("\t")
        if name == instance_type:
            return float(gbps)
    return None


def _own_name() -> str:
    """Return the instance type from the hardware description, or "".

    https://github.com/systemd/systemd/commit/f90eea7d18d9ebe88e6a66cd7a86b618def8945d
    """
    return _hardware("product_name") if _hardware("sys_vendor") == NITRO else ""


def _hardware(name: str) -> str:
    """Return a field of the hardware description, or ""."""
    try:
        return (HARDWARE / name).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
