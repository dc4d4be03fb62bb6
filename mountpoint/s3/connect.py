"""Connect to the bucket at mount: find region and endpoint, sign in, list the bucket once.

The region comes from the user's settings; the default is us-east-1. If the bucket's answer names
another region (`x-amz-bucket-region`), the endpoint is resolved again for that region. Only the
region's name is taken from the answer, and only if it is well-formed. Redirects are never
followed, so credentials go only to hosts that the endpoint rules name.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import urlsplit

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
    Redirected,
    S3Error,
    TransportFault,
    WrongRegion,
)
from mountpoint.metrics.recorder import Meters
from mountpoint.s3 import feature_probe, network_probe
from mountpoint.s3.aws import proxy
from mountpoint.s3.aws.credentials import Credentials
from mountpoint.s3.aws.ec2 import Instance
from mountpoint.s3.aws.endpoint import Endpoint, RegionChoice, configured_region, resolve
from mountpoint.s3.capabilities import Capabilities
from mountpoint.s3.client import ListPage
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.retry import RetryPolicy

log = structlog.get_logger(__name__)

DEFAULT_REGION = "us-east-1"

#: Mounting reports a silent endpoint within 30 seconds and a refused connection at once. A refused
#: connection gets three tries; one that hangs gets a single try of 10 s.
TRY_S = 10.0
TOTAL_S = 20.0
MAX_TRIES = 3
#: Seconds for the second attempt, with the bucket's name in the path.
PATH_S = 8.0
#: Seconds until `network_probe` starts to look for the cause.
PROBE_AFTER_S = 1.0

#: The endpoint is no S3 server, or nothing answers.
NO_STORE = (TransportFault, BadAnswer, NotFound)


class Reached(NamedTuple):
    """What `connect` has learned: the endpoint, and which features the store has, by name."""

    endpoint: Endpoint
    features: dict[str, bool]


def reconnect(
    reached: Reached,
    bucket: BucketConfig,
    credentials_config: CredentialsConfig,
    client_config: ClientConfig,
    environ: Mapping[str, str],
    meters: Meters,
) -> CrtClient:
    """Return a client for a bucket that `connect` has reached before. Sends no request to S3.

    If the credentials cannot be had at once, requests fail until they can. Raises MountError for
    settings that cannot be used.
    """
    endpoint = reached.endpoint
    credentials = None
    if not credentials_config.no_sign_request:
        credentials = Credentials(
            credentials_config, ca_bundle=client_config.ca_bundle, needed=False
        )
    by = proxy.settle(endpoint.scheme, endpoint.host, environ)
    client = _client(bucket, endpoint, credentials, client_config, meters, by)
    for name, has in reached.features.items():
        setattr(client.capabilities, name, has)
    return client


def connect(
    bucket: BucketConfig,
    credentials_config: CredentialsConfig,
    client_config: ClientConfig,
    environ: Mapping[str, str],
    stopping: threading.Event,
    meters: Meters,
    instance: Instance | None = None,
) -> CrtClient:
    """Return a client that has listed the bucket once. Raises MountError.

    `instance` supplies the region if no setting does.
    """
    credentials = None
    if not credentials_config.no_sign_request:
        credentials = Credentials(credentials_config, ca_bundle=client_config.ca_bundle)
    choice = first_region(bucket, credentials_config, environ, instance)
    return reach(bucket, credentials, choice, client_config, environ, stopping, meters)


def first_region(
    bucket: BucketConfig,
    credentials_config: CredentialsConfig,
    environ: Mapping[str, str],
    instance: Instance | None = None,
) -> RegionChoice:
    """Return the region to try first. Raises MountError."""
    choice = configured_region(bucket, credentials_config, environ, instance)
    return choice or RegionChoice(DEFAULT_REGION, "default")


def reach(
    bucket: BucketConfig,
    credentials: Credentials | None,
    choice: RegionChoice,
    client_config: ClientConfig,
    environ: Mapping[str, str],
    stopping: threading.Event,
    meters: Meters,
) -> CrtClient:
    """Return a client that has listed the bucket once, in `choice` or the region the bucket names.

    `credentials` None means unsigned requests. Raises MountError.
    """
    attempt = _Attempts(bucket, credentials, client_config, environ, stopping, meters).attempt
    try:
        return attempt(choice.region)
    except WrongRegion as wrong:
        region = _other_region(bucket, choice, wrong)
    try:
        return attempt(region)
    except WrongRegion as wrong:
        raise MountError(
            f"bucket '{bucket.name}' redirects to {region}, and that to another region ({wrong})",
            "name the bucket's region with --region",
        ) from wrong


class _Attempts:
    """Attempts to list one bucket, at several endpoints."""

    def __init__(
        self,
        bucket: BucketConfig,
        credentials: Credentials | None,
        config: ClientConfig,
        environ: Mapping[str, str],
        stopping: threading.Event,
        meters: Meters,
    ) -> None:
        self._bucket = bucket
        self._credentials = credentials
        self._config = config
        self._environ = environ
        self._stopping = stopping
        self._meters = meters

    def attempt(self, region: str) -> CrtClient:
        """Return a client that has listed the bucket once in `region`.

        Raises WrongRegion if the bucket names another region, and MountError for other errors.
        """
        endpoint = resolve(self._bucket, region)
        max_tries = min(self._config.max_tries or MAX_TRIES, MAX_TRIES)
        try:
            return self._listed(endpoint, try_s=TRY_S, total_s=TOTAL_S, max_tries=max_tries)
        except S3Error as error:
            if _names_another_region(error, endpoint):
                raise
            if self._may_want_path_style(endpoint, error):
                client = self._by_path(region, error)
                if client is not None:
                    return client
            raise mount_error(self._bucket, endpoint.host, error) from error

    def _listed(
        self, endpoint: Endpoint, *, try_s: float, total_s: float, max_tries: int
    ) -> CrtClient:
        """Return a client that has listed the bucket at `endpoint` and knows its capabilities."""
        by = proxy.settle(endpoint.scheme, endpoint.host, self._environ)
        log.debug(
            "endpoint",
            host=endpoint.host,
            path=endpoint.base_path,
            region=endpoint.region,
            proxy=by,
        )
        retry_policy = RetryPolicy(
            try_s=try_s,
            total_s=total_s,
            stopping=self._stopping,
            max_tries=max_tries,
            counters=self._meters.counters,
        )
        prefix = self._bucket.prefix
        client = _client(self._bucket, endpoint, self._credentials, self._config, self._meters, by)
        try:
            with _watching(client, endpoint, self._config.ca_bundle, by):
                page = retry_policy.ask(lambda: client.list(prefix, max_keys=1)).answer()
            if not endpoint.aws and not endpoint.has_sessions:
                self._probe(endpoint, by, page, client.capabilities)
        except BaseException:
            client.close()
            raise
        return client

    def _probe(
        self,
        endpoint: Endpoint,
        by: proxy.Proxy | None,
        page: ListPage,
        capabilities: Capabilities,
    ) -> None:
        """Probe an endpoint's capabilities, without counting these requests for the mount.

        Nor are the refusals that the probe provokes counted as failures.
        """
        # HEAD asks for checksums even if GET does not.
        config = replace(self._config, verify_checksums=True)
        client = _client(self._bucket, endpoint, self._credentials, config, Meters(), by)
        try:
            feature_probe.probe(client, self._bucket.prefix, page, self._stopping, capabilities)
        finally:
            client.close()

    def _may_want_path_style(self, endpoint: Endpoint, error: S3Error) -> bool:
        """Whether the endpoint may need the bucket's name in the path.

        Such a store has no host BUCKET.HOST, has no certificate for it, or lists all buckets there.
        """
        virtual = not endpoint.aws and not endpoint.base_path
        named = not self._bucket.name.startswith("arn:")
        return (
            virtual
            and named
            and not isinstance(error, CredentialsUnavailable | Redirected | WrongRegion)
        )

    def _by_path(self, region: str, virtual: S3Error) -> CrtClient | None:
        """Try the bucket's name in the path after `virtual` failed; return a client that works.

        None if that fails too. Raises MountError or WrongRegion if the second failure says more.
        """
        endpoint = resolve(replace(self._bucket, force_path_style=True), region)
        try:
            client = self._listed(endpoint, try_s=PATH_S, total_s=PATH_S, max_tries=2)
        except S3Error as error:
            log.debug("path style does not work either", error=str(error))
            if _names_another_region(error, endpoint):
                raise
            if isinstance(virtual, NO_STORE) and not isinstance(error, NO_STORE):
                raise mount_error(self._bucket, endpoint.host, error) from error
            return None
        log.info("the store has no virtual hosts for buckets: requests have the bucket in the path")
        return client


def _client(
    bucket: BucketConfig,
    endpoint: Endpoint,
    credentials: Credentials | None,
    config: ClientConfig,
    meters: Meters,
    by: proxy.Proxy | None,
) -> CrtClient:
    return CrtClient(
        endpoint,
        credentials,
        config,
        counters=meters.counters,
        meters=meters,
        bucket=bucket.name,
        requester_pays=bucket.requester_pays,
        expected_owner=bucket.expected_owner,
        proxied=by is not None,
    )


def _names_another_region(error: S3Error, endpoint: Endpoint) -> bool:
    return isinstance(error, WrongRegion) and error.region != endpoint.region


@contextlib.contextmanager
def _watching(
    client: CrtClient, endpoint: Endpoint, ca_bundle: str | None, by: proxy.Proxy | None
) -> Iterator[None]:
    """Raise what `network_probe` finds, as soon as it finds it, in place of the CRT's error."""
    found: list[TransportFault] = []

    def look() -> None:
        problem = network_probe.problem(endpoint, ca_bundle, by)
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
        if by is not None and not found:  # a proxy that refuses answers at once
            look()
        if found:
            raise found[0] from error
        raise
    finally:
        timer.cancel()


def _other_region(bucket: BucketConfig, choice: RegionChoice, wrong: WrongRegion) -> str:
    """Return the region that the bucket names, unless the user fixed another one."""
    if not wrong.region:
        raise MountError(
            f"bucket '{bucket.name}' is not in region {choice.region}, "
            f"and S3 does not say where it is ({wrong})",
            "name the bucket's region with --region",
        )
    if choice.source == "option":
        raise MountError(
            f"bucket '{bucket.name}' is in region {wrong.region}, not in {choice.region}",
            f"use --region {wrong.region}, or omit --region",
        )
    log.info("the bucket is in another region", region=wrong.region, tried=choice.region)
    return wrong.region


def mount_error(bucket: BucketConfig, host: str, error: S3Error) -> MountError:
    """Return the MountError that explains a failed first listing to the user."""
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
    if isinstance(error, Redirected):
        return MountError(
            f"the endpoint {host} redirects to {error.location}: redirects are not followed",
            f"if that is your store, use --endpoint-url {_redirected_url(bucket, error)}",
        )
    if isinstance(error, BadAnswer | NotFound):
        return MountError(
            f"{host} does not answer like S3{said}",
            "check --endpoint-url, and omit --force-path-style"
            if bucket.force_path_style
            else "check --endpoint-url",
        )
    return MountError(f"bucket '{name}' cannot be listed{said}", error.hint or "try again")


def _redirected_url(bucket: BucketConfig, error: Redirected) -> str:
    """Return the endpoint URL that a redirect names: without the bucket, with our URL's path."""
    scheme, _, host = error.location.partition("://")
    path = urlsplit(bucket.endpoint_url or "").path.rstrip("/")
    return f"{scheme}://{host.removeprefix(f'{bucket.name}.')}{path}"
