"""Pure: map an error answer of S3 (code and status) to an exception of `errors.py`.

S3's error bodies may quote the access key, the signed string, even tokens. So only the fields in
`_ERROR_FIELDS` are read, and anything in them that looks like a secret is masked before it can
reach a log.
"""

import re

from mountpoint.config import REGION
from mountpoint.errors import (
    AccessDenied,
    AlreadyExists,
    BadAnswer,
    BadDigest,
    BucketNotFound,
    ChecksumsNotOffered,
    Contended,
    CredentialsUnavailable,
    NoSuchUpload,
    NotFound,
    NotOffered,
    ObjectArchived,
    OutOfSpace,
    PreconditionFailed,
    Redirected,
    S3Error,
    ServerFault,
    Throttled,
    TooLarge,
    TransportFault,
    WrongOffset,
    WrongRegion,
)
from mountpoint.s3.wire.xml import read_xml

Headers = list[tuple[str, str]]

#: S3's error bodies are below 2 KB, though a signature mismatch quotes the canonical request.
ERROR_BODY_MAX_BYTES = 64 << 10
_MESSAGE_MAX_CHARS = 200

_KMS = "--sse-kms-key-id must name an enabled key in the bucket's region that you may use"
_RENEW = "renew the credentials (for SSO: aws sso login) and try again"

#: Code → class and hint. https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
#: RequestTimeout has the status 400; expired tokens have 400 or 403.
_BY_CODE: dict[str, tuple[type[S3Error], str]] = {
    "NoSuchKey": (NotFound, ""),
    "NoSuchBucket": (BucketNotFound, "check the bucket's name, and the endpoint if one is given"),
    "AccessDenied": (
        AccessDenied,
        "the policy of the bucket or of the credentials does not permit it"
        " (a requester-pays bucket needs --requester-pays)",
    ),
    "InvalidAccessKeyId": (
        CredentialsUnavailable,
        "S3 does not know this access key: check the credentials, the profile and the endpoint",
    ),
    "SignatureDoesNotMatch": (
        AccessDenied,
        "the secret access key does not belong to the access key: check the credentials",
    ),
    "RequestTimeTooSkewed": (AccessDenied, "check the clock of this machine: it is wrong"),
    "RequestExpired": (AccessDenied, "check the clock of this machine: it is wrong"),
    "InvalidObjectState": (AccessDenied, ObjectArchived.hint),
    "ExpiredToken": (CredentialsUnavailable, _RENEW),
    "ExpiredTokenException": (CredentialsUnavailable, _RENEW),
    "TokenRefreshRequired": (CredentialsUnavailable, _RENEW),
    "InvalidToken": (CredentialsUnavailable, _RENEW),
    "PreconditionFailed": (PreconditionFailed, ""),
    "SlowDown": (Throttled, ""),
    "RequestLimitExceeded": (Throttled, ""),
    "BandwidthLimitExceeded": (Throttled, ""),
    "RequestTimeout": (ServerFault, ""),
    "InternalError": (ServerFault, ""),
    "InvalidRange": (BadAnswer, ""),
    # Writes. A body that arrived changed or incomplete is sent again.
    "BadDigest": (BadDigest, ""),
    "XAmzContentChecksumMismatch": (BadDigest, ""),
    "IncompleteBody": (TransportFault, ""),
    "ConditionalRequestConflict": (Contended, ""),
    "OperationAborted": (Contended, ""),
    "NoSuchUpload": (NoSuchUpload, ""),
    "EntityTooLarge": (TooLarge, ""),
    "InvalidStorageClass": (S3Error, "check --storage-class: this bucket does not support it"),
    "QuotaExceeded": (OutOfSpace, ""),
    "XMinioStorageFull": (OutOfSpace, ""),
    "NotImplemented": (NotOffered, ""),
    # Directory buckets.
    "InvalidWriteOffset": (WrongOffset, ""),
    "TooManyParts": (
        TooLarge,
        "an object accepts 10,000 appends, one for each fsync and close: make a copy and append "
        "to that",
    ),
    "EncryptionTypeMismatch": (S3Error, "--sse must name the encryption that the object has"),
    "KMS.NotFoundException": (S3Error, _KMS),
    "KMS.DisabledException": (S3Error, _KMS),
    "KMS.InvalidKeyUsageException": (S3Error, _KMS),
    "KMS.KMSInvalidStateException": (S3Error, _KMS),
}
_BY_STATUS: dict[int, tuple[type[S3Error], str]] = {
    401: (AccessDenied, ""),
    403: _BY_CODE["AccessDenied"],
    404: (NotFound, ""),
    407: (AccessDenied, "the proxy in HTTP_PROXY refuses the user and password, or needs them"),
    408: (ServerFault, ""),
    412: (PreconditionFailed, ""),
    416: (BadAnswer, ""),
    429: (Throttled, ""),
    501: (NotOffered, ""),
    503: (Throttled, ""),
    507: (OutOfSpace, ""),
}
_REDIRECTS = frozenset({301, 302, 307, 308})
_LOCATION = re.compile(r"https?://[A-Za-z0-9.-]{1,253}(?::\d{1,5})?(?=/|$)", re.IGNORECASE)
_WRONG_REGION_CODES = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "PermanentRedirect",
        "TemporaryRedirect",
    }
)
#: No other field of an error is read: it may quote keys, tokens and signatures.
_ERROR_FIELDS = frozenset(
    {"Code", "Message", "RequestId", "Region", "Endpoint", "Condition", "Header"}
)
#: Codes with which stores reject an unknown header: 400 and InvalidArgument (Backblaze B2), 501 and
#: NotImplemented (S3, Cloudflare R2, versitygw). The message or another field names the header.
#: https://github.com/vatesfr/xen-orchestra/issues/8358
#: https://github.com/versity/versitygw/issues/2108
_UNKNOWN_HEADER_CODES = frozenset({"InvalidArgument", "InvalidRequest", "NotImplemented", ""})
#: "checksum missing" is MinIO's, for a part to be copied into an upload with checksums.
_CHECKSUM_HEADER = re.compile(r"x-amz-(?:sdk-)?checksum|checksum missing", re.IGNORECASE)
_CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9/+=._:-]{1,128}")
_ENDPOINT_REGION = re.compile(r"(?:^|[./])s3[.-](?:dualstack\.)?([a-z0-9-]+)\.amazonaws\.com")


def error_from_response(
    status: int, headers: Headers | None, body: bytes | None, *, what: str
) -> S3Error:
    """Return the error for an answer with a status of 300 or more.

    `what` names the request ("ListObjectsV2"), or is "". A redirect only supplies a region's name
    or a location for the message: it is never followed.
    """
    headers = headers or []
    fields = _error_fields(body or b"")
    code = fields.get("Code", "").strip()
    code = code if _CODE.fullmatch(code) and masked(code) == code else ""
    details: dict[str, str | int] = {
        "code": code,
        "status": status,
        "request_id": request_id(headers, fields.get("RequestId", "")),
    }
    reason = code or f"HTTP status {status}"
    message = printable(masked(fields.get("Message", "")), _MESSAGE_MAX_CHARS)
    if message:
        reason += f": {message}"
    if what:
        reason = f"{what}: {reason}"

    region = _other_region(fields, headers)
    location = _location(headers)
    if status in _REDIRECTS and not code and not region and location:
        return Redirected(f"{reason}, to {location}", location=location, **details)
    silent = status in _REDIRECTS or (status == 400 and not code and region)
    if silent or code in _WRONG_REGION_CODES:
        hint = f"--region {region}" if region else "name the bucket's own region with --region"
        return WrongRegion(reason, region=region, hint=hint, **details)
    fallback: type[S3Error] = ServerFault if status >= 500 else S3Error
    kind, hint = _BY_CODE.get(code) or _BY_STATUS.get(status) or (fallback, "")
    named = f"{fields.get('Message', '')} {fields.get('Header', '')}"
    unknown_header = status in (400, 501) and code in _UNKNOWN_HEADER_CODES
    if unknown_header and _CHECKSUM_HEADER.search(named):
        kind, hint = ChecksumsNotOffered, ""
    # A rename has conditions on two objects; this one is on the target.
    if kind is PreconditionFailed and fields.get("Condition", "").strip() == "If-None-Match":
        kind = AlreadyExists
    return kind(reason, hint=hint, **details)  # type: ignore[arg-type]


def _error_fields(body: bytes) -> dict[str, str]:
    """Return the allowed fields of an error body; none if it is malformed."""
    fields: dict[str, str] = {}

    def on_end(_depth: int, name: str, texts: list[str]) -> None:
        if name in _ERROR_FIELDS:
            fields.setdefault(name, "".join(texts))

    try:
        # During long operations S3 sends spaces first, and the XML declaration after them.
        root = read_xml(body.lstrip(), ERROR_BODY_MAX_BYTES, on_end)
    except BadAnswer:
        return {}
    return fields if root in ("Error", "ErrorResponse") else {}


def _first_header(headers: Headers, name: str) -> str:
    return next((value.strip() for key, value in headers if key.lower() == name), "")


def request_id(headers: Headers, in_body: str = "") -> str:
    """Return the request id of an answer, or ""."""
    for text in (in_body.strip(), _first_header(headers, "x-amz-request-id")):
        if _REQUEST_ID.fullmatch(text):
            return text
    return ""


def _location(headers: Headers) -> str:
    """Return the location of a redirect without its path, or "" if it is malformed."""
    match = _LOCATION.match(_first_header(headers, "location"))
    return match[0].lower() if match else ""


def _other_region(fields: dict[str, str], headers: Headers) -> str:
    """Return the region that the answer names, or "" if it names none or it is malformed."""
    endpoint = _ENDPOINT_REGION.search(fields.get("Endpoint", ""))
    for text in (
        _first_header(headers, "x-amz-bucket-region"),
        fields.get("Region", "").strip(),
        endpoint.group(1) if endpoint else "",
    ):
        if REGION.fullmatch(text):
            return text
    return ""


#: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html (unique ids)
_ACCESS_KEY_ID = re.compile(r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}")
#: An ARN, which tells the user who lacks which permission; or 32 or more characters of Base64,
#: URL-safe Base64 or hexadecimal digits.
_ARN_OR_SECRET = re.compile(r"(\barn:[a-z-]+:[\w:/.@*-]+)|[A-Za-z0-9+/=_%-]{32,}")


def masked(text: str) -> str:
    """Return `text` with anything that looks like a key, token or signature masked."""
    text = _ACCESS_KEY_ID.sub("***", text)
    return _ARN_OR_SECRET.sub(lambda match: match.group(1) or _mask(match.group()), text)


def _mask(text: str) -> str:
    # Secrets contain digits. Showing a long word or path of letters helps and does no harm.
    return "***" if any(letter.isdigit() for letter in text) else text


def printable(text: str, max_chars: int) -> str:
    """Return `text` as one line of at most `max_chars` characters, safe for a terminal."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"
