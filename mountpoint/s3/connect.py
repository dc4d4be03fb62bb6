"""Find the bucket: region, endpoint, credentials, and one request that shows that it works.

The region comes from the user's settings, else us-east-1; where the bucket's own answer
names another one (`x-amz-bucket-region`), the endpoint is worked out anew for that region.
Only the name is taken from the answer, and only if it looks like a region's: redirects are
never followed, so credentials go nowhere that the endpoint rules do not name.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping

import structlog

from mountpoint.config import BucketConfig, ClientConfig, CredentialsConfig
from mountpoint.errors import (
    AccessDenied,
    BadAnswer,
    BucketNotFound,
    CredentialsUnavailable,
    Interrupted,
    MountError,
    NotFound,
    S3Error,
    TransportFault,
    WrongRegion,
)
from mountpoint.meters import Meters
from mountpoint.metrics import Counters
from mountpoint.s3 import probe, proxy
from mountpoint.s3.credentials import Credentials
from mountpoint.s3.crt import CrtClient
from mountpoint.s3.endpoint import Endpoint, RegionChoice, configured_region, resolve
from mountpoint.s3.instance import Instance
from mountpoint.s3.retry import Patience

log = structlog.get_logger(__name__)

DEFAULT_REGION = "us-east-1"

#: Mounting says within 30 seconds that an endpoint does not answer, and at once that it
#: refuses: three tries do for a connection that is refused, one of 10 s for one that hangs.
TRY_S = 10.0
TOTAL_S = 20.0
MOST_TRIES = 3
#: When to look what is wrong.
PROBE_AFTER_S = 1.0


def connect(
    bucket: BucketConfig,
    credentials_config: CredentialsConfig,
    client_config: ClientConfig,
    environ: Mapping[str, str],
    stopping: threading.Event,
    counters: Counters,
    meters: Meters | None = None,
    instance: Instance | None = None,
) -> CrtClient:
    """Return a client that has listed the bucket once. Raises MountError.

    `instance` is asked for the region, where nobody else says one.
    """
    credentials = None
    if not credentials_config.no_sign_request:
        credentials = Credentials(credentials_config, ca_bundle=client_config.ca_bundle)
    choice = first_region(bucket, credentials_config, environ, instance)
    return reach(bucket, credentials, choice, client_config, environ, stopping, counters, meters)


def first_region(
    bucket: BucketConfig,
    credentials_config: CredentialsConfig,
    environ: Mapping[str, str],
    instance: Instance | None = None,
) -> RegionChoice:
    """Return the region that is asked first. Raises MountError."""
    choice = configured_region(bucket, credentials_config, environ, instance)
    return choice or RegionChoice(DEFAULT_REGION, "default")


def reach(
    bucket: BucketConfig,
    credentials: Credentials | None,
    choice: RegionChoice,
    client_config: ClientConfig,
    environ: Mapping[str, str],
    stopping: threading.Event,
    counters: Counters,
    meters: Meters | None = None,
) -> CrtClient:
    """Return a client that has listed the bucket once, in `choice` or where the bucket says.

    `credentials` None: unsigned. Raises MountError.
    """
    patience = Patience(
        try_s=TRY_S,
        total_s=TOTAL_S,
        stopping=stopping,
        most_tries=min(client_config.most_tries or MOST_TRIES, MOST_TRIES),
        counters=counters,
    )

    def attempt(region: str) -> CrtClient:
        endpoint = resolve(bucket, region)
        by = proxy.settle(endpoint.scheme, endpoint.host, environ)
        log.debug(
            "endpoint",
            host=endpoint.host,
            path=endpoint.base_path,
            region=endpoint.region,
            proxy=by,
        )
        client = CrtClient(
            endpoint,
            credentials,
            client_config,
            counters=counters,
            meters=meters,
            bucket=bucket.name,
            requester_pays=bucket.requester_pays,
            expected_owner=bucket.expected_owner,
        )
        try:
            with _watching(client, endpoint, client_config.ca_bundle, by):
                patience.ask(lambda: client.list(bucket.prefix, max_keys=1)).answer()
        except BaseException as error:
            client.close()
            elsewhere = isinstance(error, WrongRegion) and error.region != endpoint.region
            if isinstance(error, S3Error) and not elsewhere:
                raise mount_error(bucket, endpoint.host, error) from error
            raise
        return client

    try:
        return attempt(choice.region)
    except WrongRegion as wrong:
        region = _other_region(bucket, choice, wrong)
    try:
        return attempt(region)
    except WrongRegion as wrong:
        raise MountError(
            f"bucket '{bucket.name}' names {region}, and there another region ({wrong})",
            "give the bucket's region with --region",
        ) from wrong


@contextlib.contextmanager
def _watching(
    client: CrtClient, endpoint: Endpoint, ca_bundle: str | None, by: proxy.Proxy | None
) -> Iterator[None]:
    """Raise what `probe` finds in place of the CRT's error, as soon as it is found."""
    found: list[TransportFault] = []

    def look() -> None:
        problem = probe.problem(endpoint, ca_bundle, by)
        if problem is not None:
            found.append(problem)
            client.interrupt()

    timer = threading.Timer(PROBE_AFTER_S, look)
    timer.daemon = True
    if endpoint.scheme == "https":
        timer.start()
    try:
        yield
    except (Interrupted, TransportFault) as error:
        if by is not None and not found:  # a proxy that refuses does so at once
            look()
        if found:
            raise found[0] from error
        raise
    finally:
        timer.cancel()


def _other_region(bucket: BucketConfig, choice: RegionChoice, wrong: WrongRegion) -> str:
    """Return the region that the bucket names, unless the user insists on another."""
    if not wrong.region:
        raise MountError(
            f"bucket '{bucket.name}' is not in region {choice.region}, "
            f"and S3 does not say where it is ({wrong})",
            "give the bucket's region with --region",
        )
    if choice.source == "option":
        raise MountError(
            f"bucket '{bucket.name}' is in region {wrong.region}, not in {choice.region}",
            f"use --region {wrong.region}, or leave --region out",
        )
    log.info("the bucket is in another region", region=wrong.region, tried=choice.region)
    return wrong.region


def mount_error(bucket: BucketConfig, host: str, error: S3Error) -> MountError:
    """Return what a refused first listing means to the user."""
    name = bucket.name
    said = f" ({error})" if str(error) else ""
    if isinstance(error, BucketNotFound):
        return MountError(
            f"bucket '{name}' does not exist at {host}{said}",
            "check the name, and --region or --endpoint-url",
        )
    if isinstance(error, CredentialsUnavailable):
        return MountError(
            f"the credentials for bucket '{name}' cannot be used{said}",
            error.hint or "renew them, or choose others with --profile",
        )
    if isinstance(error, AccessDenied):
        return MountError(
            f"access to bucket '{name}' was denied{said}",
            error.hint
            or "the credentials need s3:ListBucket on the bucket and s3:GetObject on its objects; "
            "for a public bucket use --no-sign-request",
        )
    if isinstance(error, TransportFault):
        return MountError(
            f"no answer from {host}{said}",
            error.hint or "check the network, --endpoint-url and --region",
        )
    if isinstance(error, BadAnswer | NotFound):
        return MountError(
            f"{host} does not answer like S3{said}",
            "check --endpoint-url, and try --force-path-style for a store that is not AWS",
        )
    return MountError(f"bucket '{name}' cannot be listed{said}", error.hint or "try again")
