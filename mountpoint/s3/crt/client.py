"""`ObjectClient` over the AWS Common Runtime (CRT).

There is one `S3Client` for one endpoint, with an event loop thread for two cores. A GET is a
GET_OBJECT request of at most one part, which the CRT sends as a single ranged request; a small one
goes past the `S3Client` if it can (`native`). A GET without a range, HEAD, LIST and all writes are
DEFAULT requests, which the CRT sends unchanged; so this program splits uploads into parts and
retries them itself. Requests are signed (`signing`) without their bodies (UNSIGNED-PAYLOAD), over
http too; a body's checksum is in a signed header. Callbacks come on CRT threads with the GIL. The
CRT's retries are off: the caller retries (`s3.retry`).

The CRT resolves the Host header of each request and reuses connections by host name, so a client
serves exactly one endpoint.

Create the client after the fork: the CRT's threads do not survive one.
"""

import functools
import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import awscrt.io
import structlog
from awscrt.exceptions import AwsCrtError
from awscrt.http import HttpHeaders, HttpRequest
from awscrt.io import (
    ClientBootstrap,
    ClientTlsContext,
    DefaultHostResolver,
    EventLoopGroup,
    TlsContextOptions,
)
from awscrt.s3 import (
    S3Client,
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
    NotOffered,
    S3Error,
    TransportFault,
)
from mountpoint.metrics.counters import CounterName, Counters
from mountpoint.metrics.recorder import Meters
from mountpoint.native._arrivals import Arrival
from mountpoint.native._lane import LaneSource
from mountpoint.s3.aws.credentials import Credentials
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.capabilities import Capabilities
from mountpoint.s3.client import (
    ALWAYS,
    Body,
    BodySink,
    Checksum,
    ChecksumName,
    Condition,
    ListPage,
    ObjectInfo,
    PartDone,
    PutOptions,
    Stored,
    Transfer,
    UploadPage,
    Written,
)
from mountpoint.s3.crt import log as crt_log
from mountpoint.s3.crt import sizes
from mountpoint.s3.crt.body import BodyStream
from mountpoint.s3.crt.errors import crt_error
from mountpoint.s3.crt.exchange import (
    Download,
    Exchange,
    Headers,
    Inquiry,
    PythonExchange,
)
from mountpoint.s3.crt.native.connections import Connect, connector
from mountpoint.s3.crt.native.plane import EncodedHeaders, NativeDownload, NativePlane
from mountpoint.s3.crt.native.symbols import Unavailable
from mountpoint.s3.crt.signing import Signer
from mountpoint.s3.wire import reading, writing

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: CRT log levels by the standard library's level that enables them.
CRT_LEVELS = (
    (logging.ERROR, awscrt.io.LogLevel.Error),
    (logging.WARNING, awscrt.io.LogLevel.Warn),
    (logging.INFO, awscrt.io.LogLevel.Info),
    (logging.DEBUG, awscrt.io.LogLevel.Debug),
    (0, awscrt.io.LogLevel.Trace),
)

#: The CRT does not start if it lacks memory for its parts (over 128 MiB at 0.01 Gbps, over 1 GiB at
#: 10). It splits larger requests into parts, so requests here are no larger than this. Its limits
#: follow the throughput: 25 connections for each 10 Gbps, but at least 10, and 256 MiB of bodies
#: below 5 Gbps, 2 GiB at 10, 4 at 25, 16 at 100. Bodies that arrive in our memory do not count.
MAX_CRT_PART_BYTES = 64 << 20

#: The counter for each operation.
REQUESTS: dict[str, CounterName] = {
    "GetObject": "gets",
    "HeadObject": "heads",
    "ListObjectsV2": "lists",
    "ListMultipartUploads": "lists",
    "PutObject": "puts",
    "CreateMultipartUpload": "uploads",
    "UploadPart": "parts",
    "UploadPartCopy": "copies",
    "CompleteMultipartUpload": "completes",
    "AbortMultipartUpload": "aborts",
    "DeleteObject": "deletes",
    "CopyObject": "copies",
    # Our names: on the wire both are PutObject with an extra header or query.
    "AppendObject": "puts",
    "RenameObject": "renames",
}
#: Other servers treat these as a PUT that replaces the object, and answer 200.
ONLY_IN_DIRECTORIES = frozenset({"AppendObject", "RenameObject"})
#: S3 sends checksums only with this header.
CHECKSUM_MODE = ("x-amz-checksum-mode", "ENABLED")


class CrtClient:
    """An `ObjectClient` for the bucket at `endpoint`.

    `credentials` None means unsigned requests. `bucket` is the name or ARN for copies; the default
    comes from the endpoint's path. `proxied`: requests go through a proxy. Raises MountError if the
    CA bundle holds no certificates.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials | None,
        config: ClientConfig,
        *,
        counters: Counters,
        meters: Meters | None = None,
        bucket: str = "",
        requester_pays: bool = False,
        expected_owner: str | None = None,
        proxied: bool = False,
    ) -> None:
        # dependencies
        self.counters = counters
        self._meters = meters or Meters()
        self._endpoint = endpoint
        self._credentials = credentials
        self._signer = Signer(endpoint, credentials)
        # Before the CRT's own objects: an exception raised while they exist is lost.
        tls = _tls_context(config.ca_bundle)
        loops = EventLoopGroup(config.event_loops)
        bootstrap = ClientBootstrap(loops, DefaultHostResolver(loops))
        part_bytes = min(config.part_size_bytes, MAX_CRT_PART_BYTES)
        self._client = S3Client(
            bootstrap=bootstrap,
            region=endpoint.region,
            tls_mode=_tls_mode(endpoint),
            tls_connection_options=None if tls is None else tls.new_connection_options(),
            signing_config=self._signer.session_config(),
            part_size=part_bytes,
            throughput_target_gbps=config.link_gbps,
            enable_s3express=endpoint.has_sessions,
            retry_config=S3RetryConfig(retry_mode=S3RetryMode.NONE),
            connect_timeout_ms=config.connect_timeout_ms,
            network_interface_names=config.interfaces or None,
        )
        # For small GETs. Only the S3 client knows the way by proxies, sessions and interfaces.
        connect = None
        if not (proxied or endpoint.has_sessions or config.interfaces):
            timeout_ms = config.connect_timeout_ms
            connect = connector(endpoint, bootstrap, tls, timeout_ms=timeout_ms)
        # Which data plane GETs use: "native", or "python (REASON)".
        self._native, self.data_plane = self._native_plane(connect, wanted=config.native)
        # constants
        self._part_bytes = part_bytes
        self._verify_checksums = config.verify_checksums
        self.is_directory = endpoint.directory
        copies = True if endpoint.aws or endpoint.directory else None
        self.capabilities = Capabilities(
            copies_parts=copies,
            copies_with_checksums=copies,
            equal_parts=endpoint.wants_equal_parts,
        )
        self._headers: Headers = [
            ("Host", endpoint.host),
            ("User-Agent", f"{config.user_agent_prefix} mount-s3/{__version__}".strip()),
        ]
        if requester_pays:
            self._headers.append(("x-amz-request-payer", "requester"))
        self._copy_headers: Headers = []
        if expected_owner is not None:
            self._headers.append(("x-amz-expected-bucket-owner", expected_owner))
            self._copy_headers.append(("x-amz-source-expected-bucket-owner", expected_owner))
        self._encoded_headers: EncodedHeaders = []
        self._encoded_headers = self._encoded(self._headers)
        self._bucket = bucket or endpoint.base_path.strip("/")
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._under_way: set[Exchange] = set()
        self._interrupted = False

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that requests go to."""
        return self._endpoint

    @property
    def verifies(self) -> bool:
        """See ObjectClient."""
        return self._verify_checksums and self.capabilities.takes_checksum_mode

    @property
    def lists_in_order(self) -> bool:
        """See ObjectClient."""
        return self._endpoint.lists_in_order and self.capabilities.starts_after

    def head(self, key: bytes) -> "Future[ObjectInfo]":
        """See ObjectClient."""
        return self._head(key, [], lambda info, _: info)

    def list(
        self,
        prefix: bytes,
        *,
        token: str | None = None,
        start_after: bytes | None = None,
        max_keys: int = 1000,
        flat: bool = False,
    ) -> "Future[ListPage]":
        """See ObjectClient."""
        target = reading.list_target(
            self._endpoint.base_path,
            prefix,
            delimiter=b"" if flat else b"/",
            token=token,
            start_after=start_after,
            max_keys=max_keys,
            by_marker=not self.capabilities.pages_by_token,
        )

        def parse(status: int, headers: Headers, body: bytes) -> ListPage:
            return reading.parse_list(body, prefix)

        return self._ask("GET", "ListObjectsV2", target, parse)

    def get(self, version: ObjectInfo, start: int, stop: int, sink: BodySink) -> Transfer:
        """See ByteSource."""
        self.counters.add("bytes_asked", stop - start)
        target = reading.object_target(self._endpoint.base_path, version.key)
        verify = self.verifies
        match = self._if_match(version)
        whole = (start, stop) == (0, version.size_bytes)
        # The CRT splits a larger range, and shows only the headers of the first piece.
        single = stop - start <= self._part_bytes
        # Stores other than S3 (SeaweedFS, MinIO, Ceph) send no checksum with a range, even a range
        # of the whole object. If-Match rejects an object that has grown since.
        ranged = not (verify and whole and match)
        extra = [("Range", reading.range_header(start, stop))] if ranged else []
        if verify and (single or not ranged):
            extra.append(CHECKSUM_MODE)
        extra += match
        if self._native is not None and version.etag and single and isinstance(sink, Arrival):
            native = NativeDownload(
                self, version, start, stop, sink, whole=not ranged, verify=verify
            )
            if self._admit(native, "GetObject"):
                self._native.send(native, sink, target, self._encoded(extra), self._signer.config())
            return native
        request_type = S3RequestType.GET_OBJECT if ranged else S3RequestType.DEFAULT
        download = Download(self, version.key, start, stop, sink, whole=whole, verify=verify)
        self._send(download, request_type, "GetObject", "GET", target, extra)
        return download

    def lane_source(self, version: ObjectInfo) -> LaneSource | None:
        """See ByteSource."""
        if self._native is None or not version.etag or self._interrupted:
            return None
        try:
            self.check_credentials()
        except CredentialsUnavailable:
            return None
        verify = self.verifies
        match = self._if_match(version)
        return self._native.source(
            reading.object_target(self._endpoint.base_path, version.key),
            self._encoded(([CHECKSUM_MODE] if verify else []) + match),
            self._signer.config(),
            version,
            verify=verify,
            matches=bool(match),
        )

    def _if_match(self, version: ObjectInfo) -> Headers:
        """Return the header that requires a version; where it does not hold, sinks compare."""
        required = version.etag and self.capabilities.matches
        return [("If-Match", version.etag)] if required else []

    def _encoded(self, extra: Headers) -> EncodedHeaders:
        """Return all headers of a request as bytes."""
        return self._encoded_headers + [(name.encode(), value.encode()) for name, value in extra]

    def _native_plane(
        self, connect: Connect | None, *, wanted: bool
    ) -> tuple[NativePlane | None, str]:
        """Return the client's native plane, or None; and which plane is used, in words."""
        if not wanted:
            return None, "python (--no-native)"
        try:
            return NativePlane(self._client, self.counters, self._meters, connect), "native"
        except Unavailable as error:
            return None, f"python ({error})"

    def head_with_checksums(self, key: bytes) -> "Future[Stored]":
        """See ByteSource."""
        mode = [CHECKSUM_MODE] if self.capabilities.takes_checksum_mode else []
        return self._head(key, mode, writing.stored)

    def put_object(
        self, key: bytes, body: Body, options: PutOptions, condition: Condition = ALWAYS
    ) -> "Future[Written]":
        """See ObjectClient."""
        target = reading.object_target(self._endpoint.base_path, key)
        headers = writing.option_headers(options) + writing.condition_headers(condition)
        return self._send_body("PutObject", target, headers, body)

    def append_object(
        self,
        key: bytes,
        body: Body,
        *,
        offset: int,
        options: PutOptions,
        condition: Condition = ALWAYS,
    ) -> "Future[Written]":
        """See ObjectClient."""
        target = reading.object_target(self._endpoint.base_path, key)
        headers = writing.append_headers(offset, options, condition)
        headers += writing.checksum_headers(body.checksum)
        after = offset + body.size_bytes
        self.counters.add("bytes_sent", body.size_bytes)

        def parse(status: int, headers: Headers, body: bytes) -> Written:
            return writing.appended(headers, after)

        return self._ask("PUT", "AppendObject", target, parse, headers, body)

    def rename_object(
        self, source: bytes, key: bytes, *, source_etag: str, condition: Condition, token: str
    ) -> "Future[None]":
        """See ObjectClient."""
        target = writing.rename_target(self._endpoint.base_path, key)
        headers = writing.rename_headers(source, source_etag, condition, token)

        def parse(status: int, headers: Headers, body: bytes) -> None:
            writing.renamed(headers)

        return self._ask("PUT", "RenameObject", target, parse, headers, Body())

    def create_upload(self, key: bytes, options: PutOptions) -> "Future[str]":
        """See ObjectClient."""
        target = reading.object_target(self._endpoint.base_path, key) + "?uploads"
        headers = writing.create_headers(options)

        def parse(status: int, headers: Headers, body: bytes) -> str:
            return writing.upload_id(headers, body)

        return self._ask("POST", "CreateMultipartUpload", target, parse, headers, Body())

    def upload_part(self, key: bytes, upload_id: str, number: int, body: Body) -> "Future[Written]":
        """See ObjectClient."""
        target = writing.upload_target(self._endpoint.base_path, key, upload_id, number)
        return self._send_body("UploadPart", target, [], body)

    def complete_upload(
        self,
        key: bytes,
        upload_id: str,
        parts: Sequence[PartDone],
        *,
        size_bytes: int,
        checksum: Checksum | None,
        condition: Condition = ALWAYS,
    ) -> "Future[Written]":
        """See ObjectClient."""
        target = writing.upload_target(self._endpoint.base_path, key, upload_id)
        headers = writing.complete_headers(size_bytes, checksum, condition)
        headers.append(("Content-Type", "application/xml"))
        xml = writing.complete_body(parts)

        def parse(status: int, headers: Headers, body: bytes) -> Written:
            return writing.completed(headers, body, checksum)

        operation = "CompleteMultipartUpload"
        return self._ask("POST", operation, target, parse, headers, Body([xml], len(xml)))

    def abort_upload(self, key: bytes, upload_id: str) -> "Future[None]":
        """See ObjectClient."""
        target = writing.upload_target(self._endpoint.base_path, key, upload_id)
        return self._ask("DELETE", "AbortMultipartUpload", target, _nothing)

    def list_uploads(
        self, prefix: bytes, *, after: tuple[bytes, str] | None = None
    ) -> "Future[UploadPage]":
        """See ObjectClient."""
        target = writing.uploads_target(self._endpoint.base_path, prefix, after)

        def parse(status: int, headers: Headers, body: bytes) -> UploadPage:
            return writing.uploads_page(body, prefix)

        return self._ask("GET", "ListMultipartUploads", target, parse)

    def delete_object(self, key: bytes, *, etag: str | None = None) -> "Future[None]":
        """See ObjectClient."""
        target = reading.object_target(self._endpoint.base_path, key)
        headers = writing.condition_headers(Condition(etag=etag))

        def parse(status: int, headers: Headers, body: bytes) -> None:
            writing.deleted(body)

        return self._ask("DELETE", "DeleteObject", target, parse, headers)

    def copy_object(
        self,
        source: bytes,
        key: bytes,
        *,
        source_etag: str,
        options: PutOptions | None = None,
        keep_metadata: bool = False,
        condition: Condition = ALWAYS,
    ) -> "Future[Written]":
        """See ObjectClient."""
        target = reading.object_target(self._endpoint.base_path, key)
        copy_source = writing.copy_source(self._bucket, source)
        headers = writing.copy_headers(
            copy_source, source_etag, options, condition, keep_metadata=keep_metadata
        )
        return self._copy("CopyObject", target, headers)

    def copy_part(
        self,
        source: bytes,
        key: bytes,
        upload_id: str,
        number: int,
        start: int,
        stop: int,
        *,
        source_etag: str,
        checksum: ChecksumName | None = None,
    ) -> "Future[Written]":
        """See ObjectClient."""
        target = writing.upload_target(self._endpoint.base_path, key, upload_id, number)
        copy_source = writing.copy_source(self._bucket, source)
        headers = writing.copy_part_headers(copy_source, source_etag, start, stop)
        return self._copy("UploadPartCopy", target, headers, checksum)

    def interrupt(self) -> None:
        """See ObjectClient."""
        with self._lock:
            self._interrupted = True
            under_way = list(self._under_way)
        for exchange in under_way:
            exchange.end(Interrupted("the mount is ending"))
            exchange.cancel()

    def close(self) -> None:
        """See ObjectClient."""
        self.interrupt()
        if self._native is not None:
            self._native.close()

    def _ask(
        self,
        method: str,
        operation: str,
        target: str,
        parse: Callable[[int, Headers, bytes], T],
        extra: Headers | None = None,
        body: Body | None = None,
    ) -> "Future[T]":
        inquiry = Inquiry(self, operation, parse)
        default = S3RequestType.DEFAULT
        self._send(inquiry, default, operation, method, target, extra or [], body)
        return inquiry.future

    def _head(
        self, key: bytes, extra: Headers, parse: Callable[[ObjectInfo, Headers], T]
    ) -> "Future[T]":
        target = reading.object_target(self._endpoint.base_path, key)
        heading = self._ask("HEAD", "HeadObject", target, _only_headers, extra)
        few = functools.partial(self.list, key, max_keys=sizes.FEW_KEYS)
        return sizes.with_size(key, heading, few, parse)

    def _send_body(
        self, operation: str, target: str, extra: Headers, body: Body
    ) -> "Future[Written]":
        """Send an object or a part; the checksum in the answer must be the body's."""
        checksum = body.checksum
        self.counters.add("bytes_sent", body.size_bytes)

        def parse(status: int, headers: Headers, body: bytes) -> Written:
            return writing.written(headers, checksum)

        headers = extra + writing.checksum_headers(checksum)
        return self._ask("PUT", operation, target, parse, headers, body)

    def _copy(
        self, operation: str, target: str, headers: Headers, checksum: ChecksumName | None = None
    ) -> "Future[Written]":
        root = "CopyObjectResult" if operation == "CopyObject" else "CopyPartResult"

        def parse(status: int, headers: Headers, body: bytes) -> Written:
            return writing.copied(headers, body, root, checksum)

        return self._ask("PUT", operation, target, parse, headers + self._copy_headers, Body())

    def _send(
        self,
        exchange: PythonExchange,
        request_type: S3RequestType,
        operation: str,
        method: str,
        target: str,
        extra: Headers,
        body: Body | None = None,
    ) -> None:
        if not self._admit(exchange, operation):
            return
        stream = None
        if body is not None:  # S3 requires a length even for an empty body
            extra = [*extra, ("Content-Length", str(body.size_bytes))]
            stream = BodyStream(body) if body.size_bytes else None
        try:
            exchange.request = self._client.make_request(
                type=request_type,
                request=HttpRequest(method, target, HttpHeaders(self._headers + extra), stream),
                operation_name=operation,
                signing_config=self._signer.config(),
                on_headers=exchange.on_headers,
                on_body=exchange.on_body,
                on_done=exchange.on_done,
            )
        except AwsCrtError as error:
            exchange.drop(_crt_error(error))
        if exchange.ended:  # the answer arrived first: see Exchange
            exchange.request = None

    def _admit(self, exchange: Exchange, operation: str) -> bool:
        """Register, count and time a request that is about to be sent; False if it has ended."""
        with self._lock:
            self._under_way.add(exchange)
            interrupted = self._interrupted
        if interrupted:
            exchange.end(Interrupted("the mount is ending"))
            return False
        if operation in ONLY_IN_DIRECTORIES and not self.is_directory:
            exchange.end(NotOffered(f"{operation}: only directory buckets support it"))
            return False
        try:
            if self._credentials is not None:
                self._credentials.check()
        except CredentialsUnavailable as error:
            exchange.end(error)
            return False
        # Count and register before the answer can arrive.
        self.counters.add(REQUESTS[operation])
        exchange.clock = self._meters.request(operation)
        return True

    def check_credentials(self) -> None:
        """Raise CredentialsUnavailable unless requests can be signed. Sends no request."""
        if self._credentials is not None:
            self._credentials.check()

    def first_end(self, exchange: Exchange) -> bool:
        """Record the end of an exchange; True the first time."""
        with self._lock:
            if exchange not in self._under_way:
                return False
            self._under_way.remove(exchange)
            exchange.ended = True
            return True

    def error_of(
        self, error: BaseException, status: int | None, headers: Headers | None, body: bytes | None
    ) -> S3Error:
        """Return the S3Error for an error of the CRT."""
        if isinstance(error, S3Error):  # raised by one of our callbacks
            return error
        if isinstance(error, S3ResponseError) and status is not None:
            refusal = reading.error_from_response(status, headers, body, what="")
            return refusal if self._credentials is None else self._credentials.explain(refusal)
        return _crt_error(error)


def enable_crt_log(level: int) -> None:
    """Send the CRT's own log to the standard library's loggers `awscrt.*`. Call it once."""
    crt_level = next(name for threshold, name in CRT_LEVELS if level >= threshold)
    crt_log.relay(lambda path: awscrt.io.init_logging(crt_level, path))


def _crt_error(error: BaseException) -> S3Error:
    name = getattr(error, "name", type(error).__name__)
    message = str(getattr(error, "message", error))
    meaning = crt_error(name, message)
    if isinstance(meaning, TransportFault | BadAnswer):
        log.debug("the client library failed", error=name, message=message)
    return meaning


def _only_headers(_status: int, headers: Headers, _body: bytes) -> Headers:
    return headers


def _nothing(_status: int, _headers: Headers, _body: bytes) -> None:
    """Ignore the contents of a successful answer."""


def _tls_mode(endpoint: Endpoint) -> S3RequestTlsMode:
    return S3RequestTlsMode.DISABLED if endpoint.scheme == "http" else S3RequestTlsMode.ENABLED


def _tls_context(ca_bundle: str | None) -> ClientTlsContext | None:
    if ca_bundle is None:
        return None
    try:
        # The CRT accepts a file without certificates, and later fails without a reason.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_bundle)
        options = TlsContextOptions()
        options.override_default_trust_store_from_path(None, ca_bundle)
        return ClientTlsContext(options)
    except (AwsCrtError, OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise MountError(
            f"the CA bundle '{ca_bundle}' cannot be used: {error}",
            "--ca-bundle, AWS_CA_BUNDLE and the profile's ca_bundle must name a PEM file",
        ) from error
