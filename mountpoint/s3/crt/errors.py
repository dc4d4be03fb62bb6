"""Pure: map the CRT's own errors, by name, to exceptions. See `s3/wire/errors` for S3's answers.

The CRT's names and messages are for programmers. Users see plain words; the log has the CRT's names
at debug level.
"""

from mountpoint.errors import BadAnswer, CredentialsUnavailable, S3Error, TransportFault, Unusable
from mountpoint.s3.wire.errors import error_from_response

#: Rejections that the CRT would retry if its retries were on. It keeps only a name for them, no
#: headers and no body, so the log cannot show their request ids.
REFUSALS = {
    "AWS_ERROR_S3_SLOW_DOWN": (503, "SlowDown"),
    "AWS_ERROR_S3_INTERNAL_ERROR": (500, "InternalError"),
    "AWS_ERROR_S3_REQUEST_TIMEOUT": (400, "RequestTimeout"),
    "AWS_ERROR_S3_REQUEST_TIME_TOO_SKEWED": (403, "RequestTimeTooSkewed"),
}

#: Answers to a ranged GET without a header that the CRT needs.
UNUSABLE = {
    "AWS_ERROR_S3_MISSING_ETAG": "the answer has no ETag of the object",
    "AWS_ERROR_DEST_COPY_TOO_SMALL": (  # the size of the range
        "more bytes came than were requested: does the store ignore Range?"
    ),
    "AWS_ERROR_S3_MISSING_CONTENT_RANGE_HEADER": (
        "the answer has no Content-Range: does the store ignore Range?"
    ),
    "AWS_ERROR_S3_MISSING_CONTENT_LENGTH_HEADER": "the answer has no size of the object",
}
#: Malformed answers, most likely changed on the way.
SENSELESS = {
    "AWS_ERROR_S3_INVALID_CONTENT_RANGE_HEADER": "the Content-Range of the answer is invalid",
    "AWS_ERROR_S3_INVALID_CONTENT_LENGTH_HEADER": "the Content-Length is invalid",
}

CLOSED = "the server closed the connection"
UNKNOWN_NAME = "the host name cannot be resolved"
WORDS = {
    "AWS_IO_SOCKET_CONNECTION_REFUSED": "the connection was refused",
    "AWS_IO_SOCKET_TIMEOUT": "the connection timed out",
    "AWS_IO_SOCKET_NO_ROUTE_TO_HOST": "there is no route to the host",
    "AWS_IO_SOCKET_NETWORK_DOWN": "the network is down",
    "AWS_IO_SOCKET_CLOSED": CLOSED,
    "AWS_IO_SOCKET_NOT_CONNECTED": CLOSED,
    "AWS_IO_DNS_QUERY_FAILED": UNKNOWN_NAME,
    "AWS_IO_DNS_QUERY_AGAIN": UNKNOWN_NAME,
    "AWS_IO_DNS_INVALID_NAME": UNKNOWN_NAME,
    "AWS_IO_DNS_NO_ADDRESS_FOR_HOST": "the host name has no address",
    "AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE": "TLS negotiation failed",
    "AWS_IO_TLS_NEGOTIATION_TIMEOUT": "TLS negotiation took too long",
    "AWS_ERROR_HTTP_CONNECTION_CLOSED": CLOSED,
    "AWS_ERROR_HTTP_SERVER_CLOSED": CLOSED,
    "AWS_ERROR_HTTP_PROXY_CONNECT_FAILED": "the proxy opened no connection",
    "AWS_ERROR_HTTP_PROTOCOL_ERROR": "the answer is not valid HTTP",
    "AWS_ERROR_S3_INVALID_RESPONSE_STATUS": "the answer has an unexpected HTTP status",
}


def crt_error(name: str, message: str) -> S3Error:
    """Return the S3Error for a CRT error with this name and message."""
    if name in REFUSALS:
        status, code = REFUSALS[name]
        body = f"<Error><Code>{code}</Code></Error>".encode()
        return error_from_response(status, None, body, what="")
    if name in UNUSABLE:
        return Unusable(UNUSABLE[name])
    if name in SENSELESS:
        return BadAnswer(SENSELESS[name])
    if "CREDENTIALS" in name:  # for a session with a directory bucket
        return CredentialsUnavailable("there are no credentials to sign with")
    return TransportFault(WORDS.get(name) or _plain(message), hint=_hint(name))


def _hint(name: str) -> str:
    if "TLS" in name:
        return "name the certificates to trust with --ca-bundle or AWS_CA_BUNDLE"
    if "PROXY" in name:
        return "the proxy in HTTPS_PROXY refuses; list hosts to reach without it in NO_PROXY"
    return ""


def _plain(message: str) -> str:
    return message.strip().rstrip(".") or "no answer"
