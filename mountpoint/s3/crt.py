"""`ObjectClient` over the AWS Common Runtime. The only module that imports awscrt.

How it works: one `S3Client` for one endpoint, one event loop thread (more were slower on
two cores). A GET is a GET_OBJECT request of at most one part, which the CRT sends as a
single ranged request; HEAD and LIST are DEFAULT requests. Callbacks come on CRT threads
with the GIL. The CRT's retries are off: who waits decides (`s3.retry`).

The CRT finds a server by the Host header of the request and reuses connections by host
name, so a client serves exactly one endpoint.

Must be made after the fork: the CRT's threads do not survive one.
"""

import logging
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Generic, TypeVar

import awscrt.io
import awscrt.logging
from awscrt.auth import (
    AwsCredentials,
    AwsCredentialsProvider,
    AwsSignatureType,
    AwsSignedBodyHeaderType,
    AwsSignedBodyValue,
    AwsSigningAlgorithm,
    AwsSigningConfig,
)
from awscrt.exceptions import AwsCrtError
from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import (
    ClientBootstrap,
    ClientTlsContext,
    DefaultHostResolver,
    EventLoopGroup,
    TlsConnectionOptions,
    TlsContextOptions,
)
from awscrt.s3 import (
    S3Client,
    S3Request,
    S3RequestTlsMode,
    S3RequestType,
    S3ResponseError,
    S3RetryConfig,
    S3RetryMode,
)

from mountpoint import __version__
from mountpoint.config import ClientConfig
from mountpoint.errors import (
    BadAnswer,
    CredentialsUnavailable,
    Interrupted,
    MountError,
    S3Error,
    TransportFault,
)
from mountpoint.s3 import wire
from mountpoint.s3.client import BodySink, ListPage, ObjectInfo, Transfer
from mountpoint.s3.credentials import Credentials
from mountpoint.s3.endpoint import Endpoint

T = TypeVar("T")
Headers = list[tuple[str, str]]

#: The largest answer to a metadata request that is accepted: a LIST page of 1,000 keys of
#: 1,024 bytes, each byte percent-encoded, with room for the other fields.
MAX_METADATA_BYTES = 16 << 20

#: The CRT's levels, by the standard library's that include them.
CRT_LEVELS = (
    (logging.ERROR, awscrt.io.LogLevel.Error),
    (logging.WARNING, awscrt.io.LogLevel.Warn),
    (logging.INFO, awscrt.io.LogLevel.Info),
    (logging.DEBUG, awscrt.io.LogLevel.Debug),
    (0, awscrt.io.LogLevel.Trace),
)

#: Refusals that the CRT would retry, had it been allowed to. Of these it keeps neither headers
#: nor body, only a name of its own: so the log cannot have their request ids.
CRT_REFUSALS = {
    "AWS_ERROR_S3_SLOW_DOWN": (503, "SlowDown"),
    "AWS_ERROR_S3_INTERNAL_ERROR": (500, "InternalError"),
    "AWS_ERROR_S3_REQUEST_TIMEOUT": (400, "RequestTimeout"),
    "AWS_ERROR_S3_REQUEST_TIME_TOO_SKEWED": (403, "RequestTimeTooSkewed"),
}

ALGORITHMS = {
    "v4": AwsSigningAlgorithm.V4,
    "v4a": AwsSigningAlgorithm.V4_ASYMMETRIC,
    "v4-s3express": AwsSigningAlgorithm.V4_S3EXPRESS,
}


class CrtClient:
    """An `ObjectClient` for the bucket at `endpoint`.

    `credentials` None means unsigned requests. Raises MountError for a CA bundle that
    holds no certificates.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials | None,
        config: ClientConfig,
        *,
        requester_pays: bool = False,
    ) -> None:
        # dependencies
        self._endpoint = endpoint
        self._credentials = credentials
        # Before the CRT's own objects: an exception that passes them on its way is lost.
        tls_options = _tls_options(config.ca_bundle)
        loops = EventLoopGroup(1)
        self._client = S3Client(
            bootstrap=ClientBootstrap(loops, DefaultHostResolver(loops)),
            region=endpoint.region,
            tls_mode=_tls_mode(endpoint),
            tls_connection_options=tls_options,
            signing_config=_signing_config(endpoint, credentials),
            part_size=config.part_size_bytes,
            throughput_target_gbps=config.throughput_gbps,
            enable_s3express=endpoint.signing_algorithm == "v4-s3express",
            retry_config=S3RetryConfig(retry_mode=S3RetryMode.NONE),
            connect_timeout_ms=config.connect_timeout_ms,
        )
        # constants
        self._headers: Headers = [
            ("Host", endpoint.host),
            ("User-Agent", f"mount-s3/{__version__}"),
        ]
        if requester_pays:
            self._headers.append(("x-amz-request-payer", "requester"))
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._under_way: set[_Exchange] = set()
        self._interrupted = False

    def head(self, key: bytes) -> "Future[ObjectInfo]":
        """See ObjectClient."""
        target = wire.object_target(self._endpoint.base_path, key)

        def parse(status: int, headers: Headers, body: bytes) -> ObjectInfo:
            return wire.object_info(key, status, headers)

        return self._ask("HEAD", "HeadObject", target, parse)

    def list(
        self, prefix: bytes, *, token: str | None = None, max_keys: int = 1000
    ) -> "Future[ListPage]":
        """See ObjectClient."""
        target = wire.list_target(self._endpoint.base_path, prefix, token=token, max_keys=max_keys)

        def parse(status: int, headers: Headers, body: bytes) -> ListPage:
            return wire.parse_list(body, prefix)

        return self._ask("GET", "ListObjectsV2", target, parse)

    def get(
        self, key: bytes, start: int, stop: int, sink: BodySink, *, if_match: str | None
    ) -> Transfer:
        """See ObjectClient."""
        target = wire.object_target(self._endpoint.base_path, key)
        extra: Headers = [("Range", wire.range_header(start, stop))]
        if if_match is not None:
            extra.append(("If-Match", if_match))
        download = _Download(self, key, start, stop, sink)
        self._send(download, S3RequestType.GET_OBJECT, "GetObject", "GET", target, extra)
        return download

    def interrupt(self) -> None:
        """See ObjectClient."""
        with self._lock:
            self._interrupted = True
            under_way = list(self._under_way)
        for exchange in under_way:
            exchange.end(Interrupted("the mount is going away"))
            exchange.cancel()

    def close(self) -> None:
        """See ObjectClient."""
        self.interrupt()

    def _ask(
        self,
        method: str,
        operation: str,
        target: str,
        parse: Callable[[int, Headers, bytes], T],
    ) -> "Future[T]":
        inquiry = _Inquiry(self, operation, parse)
        self._send(inquiry, S3RequestType.DEFAULT, operation, method, target, [])
        return inquiry.future

    def _send(
        self,
        exchange: "_Exchange",
        request_type: S3RequestType,
        operation: str,
        method: str,
        target: str,
        extra: Headers,
    ) -> None:
        with self._lock:
            self._under_way.add(exchange)
            interrupted = self._interrupted
        if interrupted:
            exchange.end(Interrupted("the mount is going away"))
            return
        try:
            exchange.request = self._client.make_request(
                type=request_type,
                request=HttpRequest(method, target, HttpHeaders(self._headers + extra)),
                operation_name=operation,
                on_headers=exchange.on_headers,
                on_body=exchange.on_body,
                on_done=exchange.on_done,
            )
        except AwsCrtError as error:
            exchange.end(TransportFault(f"{operation} could not be sent: {error}"))
        if exchange.ended:
            exchange.request = None  # see _Exchange

    def first_end(self, exchange: "_Exchange") -> bool:
        """Note the end of an exchange; True the first time."""
        with self._lock:
            if exchange not in self._under_way:
                return False
            self._under_way.remove(exchange)
            exchange.ended = True
            return True

    def error_of(
        self, error: BaseException, status: int | None, headers: Headers | None, body: bytes | None
    ) -> S3Error:
        """Return what the CRT's error means."""
        if isinstance(error, S3Error):  # raised by a callback of ours
            return error
        if isinstance(error, S3ResponseError) and status is not None:
            refusal = wire.error_from_response(status, headers, body, what="")
            if isinstance(refusal, CredentialsUnavailable) and self._credentials is not None:
                self._credentials.refresh_now()
            return refusal
        name = getattr(error, "name", type(error).__name__)
        if name in CRT_REFUSALS:
            status, code = CRT_REFUSALS[name]
            return wire.error_from_response(
                status, None, f"<Error><Code>{code}</Code></Error>".encode(), what=""
            )
        if "CREDENTIALS" in name:
            return self._credentials_error()
        hint = ""
        if "TLS" in name:
            hint = "--ca-bundle or AWS_CA_BUNDLE names the certificates to trust"
        return TransportFault(f"{getattr(error, 'message', error)} ({name})", hint=hint)

    def _credentials_error(self) -> S3Error:
        try:
            if self._credentials is not None:
                self._credentials.current()
        except CredentialsUnavailable as error:
            return error
        return CredentialsUnavailable("there are no credentials to sign with")


class _Exchange:
    """One request and its answer.

    Request, callbacks and exchange hold each other; `request` is cleared at the end, or
    every body that ever came would stay in memory.
    """

    def __init__(self, client: CrtClient) -> None:
        self.client = client
        self.request: S3Request | None = None
        self.ended = False
        self.status = 0
        self.headers: Headers = []

    def on_headers(self, status_code: int, headers: Headers, **_: Any) -> None:
        """Take the answer's first part."""
        self.status = status_code
        self.headers = headers

    def on_body(self, chunk: bytes, offset: int, **_: Any) -> None:
        """Take bytes."""
        raise NotImplementedError

    def on_done(
        self,
        error: BaseException | None = None,
        error_headers: Headers | None = None,
        error_body: bytes | None = None,
        status_code: int | None = None,
        **_: Any,
    ) -> None:
        """Take the end."""
        self.request = None
        failure = None
        if error is not None:
            failure = self.client.error_of(error, status_code, error_headers, error_body)
        self.end(failure)

    def end(self, error: Exception | None) -> None:
        """Deliver the outcome, once."""
        if self.client.first_end(self):
            self.deliver(error)

    def deliver(self, error: Exception | None) -> None:
        """Hand the outcome to who asked."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Stop the request, if it is under way."""
        request = self.request
        if request is not None:
            request.cancel()


class _Inquiry(_Exchange, Generic[T]):
    """A metadata request: the whole answer is parsed into a future."""

    def __init__(
        self,
        client: CrtClient,
        operation: str,
        parse: Callable[[int, Headers, bytes], T],
    ) -> None:
        super().__init__(client)
        self.operation = operation
        self.parse = parse
        self.chunks: list[bytes] = []
        self.size = 0
        self.future: Future[T] = Future()
        self.future.add_done_callback(self._on_future)

    def on_body(self, chunk: bytes, offset: int, **_: Any) -> None:
        self.size += len(chunk)
        if self.size > MAX_METADATA_BYTES:
            raise BadAnswer(f"the answer to {self.operation} is over {MAX_METADATA_BYTES} bytes")
        self.chunks.append(chunk)

    def deliver(self, error: Exception | None) -> None:
        try:
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(self.parse(self.status, self.headers, b"".join(self.chunks)))
        except S3Error as failure:
            self.future.set_exception(failure)
        except InvalidStateError:
            pass  # cancelled: nobody waits any more

    def _on_future(self, future: "Future[T]") -> None:
        if future.cancelled():
            self.cancel()


class _Download(_Exchange):
    """A ranged GET: bytes go to the sink as they come."""

    def __init__(
        self, client: CrtClient, key: bytes, start: int, stop: int, sink: BodySink
    ) -> None:
        super().__init__(client)
        self.key = key
        self.start = start
        self.stop = stop
        self.sink = sink

    def on_headers(self, status_code: int, headers: Headers, **_: Any) -> None:
        super().on_headers(status_code, headers)
        if status_code not in (200, 206):
            return  # the CRT reports it with the body, as an error
        info = wire.object_info(self.key, status_code, headers)
        whole = (0, info.size_bytes, info.size_bytes)
        answered = wire.content_range(headers) if status_code == 206 else whole
        if answered is None or answered[:2] != (self.start, self.stop):
            raise BadAnswer(f"asked for bytes {self.start}-{self.stop}, was sent {answered}")
        self.sink.on_headers(info)

    def on_body(self, chunk: bytes, offset: int, **_: Any) -> None:
        if not self.ended:
            self.sink.on_body(chunk, offset)

    def deliver(self, error: Exception | None) -> None:
        self.sink.finish(error)


def enable_crt_log(level: int) -> None:
    """Send the CRT's own log to the standard library's loggers `awscrt.*`, once a process."""
    awscrt.logging.init_logging(logging.DEBUG)
    # init_logging takes DEBUG as the CRT's trace, which is ten times as much.
    awscrt.io.set_log_level(next(name for least, name in CRT_LEVELS if level >= least))


def _tls_mode(endpoint: Endpoint) -> S3RequestTlsMode:
    return S3RequestTlsMode.DISABLED if endpoint.scheme == "http" else S3RequestTlsMode.ENABLED


def _tls_options(ca_bundle: str | None) -> TlsConnectionOptions | None:
    if ca_bundle is None:
        return None
    try:
        # The CRT takes a file without certificates, and fails later without a reason.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_bundle)
        options = TlsContextOptions()
        options.override_default_trust_store_from_path(None, ca_bundle)
        return ClientTlsContext(options).new_connection_options()
    except (AwsCrtError, OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise MountError(
            f"the CA bundle '{ca_bundle}' cannot be used: {error}",
            "--ca-bundle and AWS_CA_BUNDLE take a file of PEM certificates",
        ) from error


def _signing_config(endpoint: Endpoint, credentials: Credentials | None) -> AwsSigningConfig | None:
    if credentials is None:
        return None

    def current() -> AwsCredentials:
        now = credentials.current()
        return AwsCredentials(now.access_key_id, now.secret_access_key, now.session_token)

    return AwsSigningConfig(
        algorithm=ALGORITHMS[endpoint.signing_algorithm],
        signature_type=AwsSignatureType.HTTP_REQUEST_HEADERS,
        service=endpoint.signing_name,
        region=endpoint.region,
        credentials_provider=AwsCredentialsProvider.new_delegate(current),
        signed_body_header_type=AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
        signed_body_value=AwsSignedBodyValue.UNSIGNED_PAYLOAD,
        use_double_uri_encode=False,
        should_normalize_uri_path=False,
    )
