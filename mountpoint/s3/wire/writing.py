"""Pure: requests that write, and their answers, on the wire. See `reading` for the others.

This program computes checksums over the bytes it holds, sends them in a header, and compares them
with what the server says it stored. Three requests may get the status 200 with an error in the
body, because S3 starts the answer before it has finished: CompleteMultipartUpload, CopyObject and
UploadPartCopy (https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html).
awscrt 0.38 detects this and reports an error, but does not document it.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import quote, quote_from_bytes

from mountpoint.errors import BadAnswer, BadDigest, S3Error
from mountpoint.s3.client import (
    Checksum,
    ChecksumName,
    Condition,
    ObjectInfo,
    PartDone,
    PendingUpload,
    PutOptions,
    Stored,
    UploadPage,
    Written,
)
from mountpoint.s3.wire import reading
from mountpoint.s3.wire.errors import Headers, error_from_response, request_id
from mountpoint.s3.wire.xml import read_xml

#: How S3 derives an object's checksum from its parts'. CRC64NVME supports only FULL_OBJECT. For
#: CRC32C, COMPOSITE lets a reader verify single parts (`s3.wire.checksum`).
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
CHECKSUM_TYPES = {"crc32c": "COMPOSITE", "crc64nvme": "FULL_OBJECT"}

#: Headers that S3 stores and copies with an object, besides Content-Type and user metadata.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
KEPT_HEADERS = (
    "Cache-Control",
    "Content-Disposition",
    "Content-Encoding",
    "Content-Language",
    "Expires",
)

#: The size of 1,000 uploads with keys of 1,024 bytes, each byte as "%XX", with room to spare.
UPLOADS_MAX_BYTES = 16 << 20
#: CompleteMultipartUpload and the copies answer with a few fields; one of them is the key.
ANSWER_MAX_BYTES = 64 << 10
#: S3's ids have about 130 characters of Base64; other stores have their own formats.
UPLOAD_ID_MAX_CHARS = 1024

#: A key may have characters that XML 1.0 cannot carry. These answers cannot be encoded, so the
#: elements that repeat the key are removed before parsing.
_ECHOED = re.compile(rb"<(Key|Location)>[^<]*</\1>")

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


# --- Requests ---


def uploads_target(base_path: str, prefix: bytes, after: tuple[bytes, str] | None) -> str:
    """Return path and query of a ListMultipartUploads request."""
    query = "uploads&encoding-type=url&max-uploads=1000"
    if prefix:
        query += f"&prefix={quote_from_bytes(prefix, safe='')}"
    if after is not None:
        key, upload_id = after
        query += f"&key-marker={quote_from_bytes(key, safe='')}"
        if upload_id:  # directory buckets continue by the key alone
            query += f"&upload-id-marker={quote(upload_id, safe='')}"
    return f"{base_path or '/'}?{query}"


def upload_target(base_path: str, key: bytes, upload_id: str, number: int | None = None) -> str:
    """Return path and query of a request about a multipart upload, or about one part of it."""
    part = "" if number is None else f"partNumber={number}&"
    target = reading.object_target(base_path, key)
    return f"{target}?{part}uploadId={quote(upload_id, safe='')}"


def copy_source(bucket: str, key: bytes) -> str:
    """Return the x-amz-copy-source of a key in a bucket, or behind an access point's ARN.

    It is URL-encoded; S3 reads "+" as a space.
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html
    """
    base = f"{bucket}/object" if bucket.startswith("arn:") else bucket
    return f"{quote(base, safe='/:')}/{quote_from_bytes(key, safe='/')}"


def option_headers(options: PutOptions) -> Headers:
    """Return the headers of a new object, for PutObject, CreateMultipartUpload and CopyObject."""
    named = {
        "x-amz-storage-class": options.storage_class,
        "x-amz-server-side-encryption": options.sse,
        "x-amz-server-side-encryption-aws-kms-key-id": options.sse_kms_key_id,
        "Content-Type": options.content_type,
    }
    headers = [(name, value) for name, value in named.items() if value is not None]
    headers += options.headers.items()
    return headers + [(f"x-amz-meta-{name}", text) for name, text in options.metadata.items()]


def condition_headers(condition: Condition) -> Headers:
    """Return the headers that limit what a write may replace."""
    headers: Headers = []
    if condition.absent:
        headers.append(("If-None-Match", "*"))
    if condition.etag is not None:
        headers.append(("If-Match", condition.etag))
    return headers


def checksum_headers(checksum: Checksum | None) -> Headers:
    """Return the header of a body's checksum."""
    return [] if checksum is None else [(f"x-amz-checksum-{checksum.name}", checksum.value)]


def create_headers(options: PutOptions) -> Headers:
    """Return the headers of a CreateMultipartUpload."""
    headers = option_headers(options)
    if options.checksum is not None:
        headers.append(("x-amz-checksum-algorithm", options.checksum.upper()))
        headers.append(("x-amz-checksum-type", CHECKSUM_TYPES[options.checksum]))
    return headers


def complete_headers(size_bytes: int, checksum: Checksum | None, condition: Condition) -> Headers:
    """Return the headers of a CompleteMultipartUpload.

    A COMPOSITE checksum has no header: S3 computes it from the parts' in the body, and only the
    answer is compared.
    """
    headers = [("x-amz-mp-object-size", str(size_bytes)), *condition_headers(condition)]
    if checksum is not None:
        kind = CHECKSUM_TYPES[checksum.name]
        headers.append(("x-amz-checksum-type", kind))
        if kind == "FULL_OBJECT":
            headers += checksum_headers(checksum)
    return headers


def complete_body(parts: Sequence[PartDone]) -> bytes:
    """Return the body of a CompleteMultipartUpload, with the checksums of parts that have one."""
    pieces = [f'<CompleteMultipartUpload xmlns="{_NAMESPACE}">']
    for part in parts:
        etag = html.escape(part.etag, quote=False)
        pieces.append(f"<Part><PartNumber>{part.number}</PartNumber><ETag>{etag}</ETag>")
        if part.checksum is not None:
            name = f"Checksum{part.checksum.name.upper()}"
            pieces.append(f"<{name}>{part.checksum.value}</{name}>")
        pieces.append("</Part>")
    pieces.append("</CompleteMultipartUpload>")
    return "".join(pieces).encode()


def copy_headers(
    source: str,
    source_etag: str,
    options: PutOptions | None,
    condition: Condition,
    *,
    keep_metadata: bool = False,
) -> Headers:
    """Return the headers of a CopyObject."""
    headers = [("x-amz-copy-source", source), ("x-amz-copy-source-if-match", source_etag)]
    if options is not None and keep_metadata:  # no directive: S3's default is COPY
        options = replace(options, content_type=None, metadata={}, headers={})
    if options is not None:
        headers += option_headers(options)
        if not keep_metadata:
            headers.append(("x-amz-metadata-directive", "REPLACE"))
        if options.checksum is not None:
            headers.append(("x-amz-checksum-algorithm", options.checksum.upper()))
    return headers + condition_headers(condition)


def copy_part_headers(source: str, source_etag: str, start: int, stop: int) -> Headers:
    """Return the headers of an UploadPartCopy."""
    return [
        ("x-amz-copy-source", source),
        ("x-amz-copy-source-if-match", source_etag),
        ("x-amz-copy-source-range", reading.range_header(start, stop)),
    ]


def append_headers(offset: int, options: PutOptions, condition: Condition) -> Headers:
    """Return the headers of a PutObject that appends. S3 keeps all properties of the object.

    The encryption must be the object's own:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html (EncryptionTypeMismatch)
    """
    encryption = PutOptions(sse=options.sse, sse_kms_key_id=options.sse_kms_key_id)
    headers = [("x-amz-write-offset-bytes", str(offset)), *option_headers(encryption)]
    return headers + condition_headers(condition)


def rename_target(base_path: str, key: bytes) -> str:
    """Return path and query of a RenameObject to `key`."""
    return reading.object_target(base_path, key) + "?renameObject"


def rename_headers(source: bytes, source_etag: str, condition: Condition, token: str) -> Headers:
    """Return the headers of a RenameObject.

    The source is its key, URL-encoded, without the bucket.
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_RenameObject.html
    """
    return [
        ("x-amz-rename-source", quote_from_bytes(source, safe="/")),
        ("x-amz-rename-source-if-match", source_etag),
        ("x-amz-client-token", token),
        *condition_headers(condition),
    ]


# --- Answers ---


def written(headers: Headers, sent: Checksum | None) -> Written:
    """Parse the answer to a PutObject or UploadPart.

    Raises BadAnswer if it has no well-formed ETag, and BadDigest if the server stored another
    checksum than `sent`.
    """
    etag = _sensible_etag(reading.header(headers, "etag") or "")
    answered = "" if sent is None else reading.header(headers, f"x-amz-checksum-{sent.name}") or ""
    _compare(sent, answered, headers)
    return Written(etag, answered, _date_ns(headers))


def appended(headers: Headers, size_bytes: int) -> Written:
    """Parse the answer to an append; the object must now have `size_bytes`.

    The checksum in the answer is dropped: S3 does not say whether it covers the object or the
    appended bytes, and has already verified the latter. Raises S3Error if the size differs.
    """
    etag = _sensible_etag(reading.header(headers, "etag") or "")
    found = (reading.header(headers, "x-amz-object-size") or "").strip()
    if found and found != str(size_bytes):
        raise S3Error(
            f"after an append the object has {reading.printable(found, 20)} bytes, "
            f"not {size_bytes}",
            request_id=request_id(headers),
        )
    return Written(etag, "", _date_ns(headers))


def renamed(headers: Headers) -> None:
    """Check the answer to a RenameObject. Raises S3Error if it is an answer to a PutObject."""
    if reading.header(headers, "etag"):
        raise S3Error(
            "the server treated a rename as a PUT: the target is empty, the source unchanged",
            request_id=request_id(headers),
        )


def deleted(body: bytes) -> None:
    """Check the answer to a DeleteObject. Raises BadAnswer if it has a body: S3's has none.

    A captive portal answers all requests with status 200 and a page of HTML.
    """
    if body:
        raise BadAnswer("the answer to DeleteObject has a body: is this S3?")


def upload_id(headers: Headers, body: bytes) -> str:
    """Return the upload id in the answer to a CreateMultipartUpload. Raises BadAnswer."""
    fields = _answer(headers, body, "InitiateMultipartUploadResult", "")
    text = fields.get("UploadId", "").strip()
    if not text or len(text) > UPLOAD_ID_MAX_CHARS or not text.isprintable():
        raise BadAnswer("a multipart upload has no valid ID", request_id=request_id(headers))
    return text


def completed(headers: Headers, body: bytes, expected: Checksum | None) -> Written:
    """Parse the answer to a CompleteMultipartUpload. Raises the error in its body, if any.

    Raises BadDigest if the checksum is not `expected`: the server joined other bytes.
    """
    fields = _answer(headers, body, "CompleteMultipartUploadResult", "CompleteMultipartUpload")
    etag = _sensible_etag(fields.get("ETag", "").strip())
    answered = ""
    if expected is not None:
        answered = fields.get(f"Checksum{expected.name.upper()}", "").strip()
        kind = fields.get("ChecksumType", "").strip() or ("COMPOSITE" if "-" in answered else "")
        if kind == CHECKSUM_TYPES[expected.name]:
            _compare(expected, answered, headers)
    return Written(etag, answered, _date_ns(headers))


def copied(
    headers: Headers, body: bytes, root: str, checksum: ChecksumName | None = None
) -> Written:
    """Parse the answer to a CopyObject or UploadPartCopy; `root` is its root element."""
    fields = _answer(headers, body, root, root.removesuffix("Result"))
    etag = _sensible_etag(fields.get("ETag", "").strip())
    answered = fields.get(f"Checksum{checksum.upper()}", "").strip() if checksum else ""
    return Written(etag, answered, reading.iso_date_ns(fields.get("LastModified", "").strip()) or 0)


def uploads_page(body: bytes, prefix: bytes) -> UploadPage:
    """Parse the body of a ListMultipartUploads answer.

    Malformed entries are dropped. Raises BadAnswer if the page as a whole is unusable.
    """
    page: dict[str, str] = {}
    entries: list[dict[str, str]] = []
    entry: dict[str, str] = {}

    def on_end(depth: int, name: str, texts: list[str]) -> None:
        nonlocal entry
        if depth == 2:
            entry[name] = "".join(texts)
        elif depth == 1 and name == "Upload":
            entries.append(entry)
            entry = {}
        elif depth == 1:
            page[name] = "".join(texts)

    root = read_xml(body, UPLOADS_MAX_BYTES, on_end)
    if root != "ListMultipartUploadsResult":
        raise BadAnswer(f"the answer to ListMultipartUploads is <{reading.printable(root, 40)}>")
    decode = reading.url_decoded if page.get("EncodingType") == "url" else reading.verbatim
    uploads = []
    for fields in entries:
        key, identity = decode(fields.get("Key", "")), fields.get("UploadId", "").strip()
        started_ns = reading.iso_date_ns(fields.get("Initiated", "").strip())
        if key.startswith(prefix) and key and identity and started_ns is not None:
            uploads.append(PendingUpload(key, identity, started_ns))
    marker = None
    if page.get("IsTruncated", "false").strip().lower() == "true":
        marker = decode(page.get("NextKeyMarker", "")), page.get("NextUploadIdMarker", "").strip()
        if not marker[0]:
            raise BadAnswer("a truncated listing of uploads has no marker to continue")
    return UploadPage(uploads, marker)


def stored(info: ObjectInfo, headers: Headers) -> Stored:
    """Return the description of an object with the checksums in the answer to a HEAD."""
    prefix = "x-amz-checksum-"
    values = {name.lower(): value.strip() for name, value in headers}
    checksums = {
        name.removeprefix(prefix): value
        for name, value in values.items()
        if name.startswith(prefix) and name not in (f"{prefix}type", f"{prefix}mode")
    }
    sendable = {name: value for name, value in values.items() if reading.is_header_text(value)}
    kept = {name: sendable[name.lower()] for name in KEPT_HEADERS if sendable.get(name.lower())}
    options = PutOptions(
        storage_class=None if info.storage_class == "STANDARD" else info.storage_class,
        content_type=sendable.get("content-type"),
        metadata=reading.metadata(list(sendable.items())),
        headers=kept,
    )
    tags = values.get("x-amz-tagging-count", "")
    return Stored(
        info,
        checksums,
        options,
        int(tags) if re.fullmatch("[0-9]{1,3}", tags) else 0,
        values.get(f"{prefix}type", ""),
    )


def _sensible_etag(text: str) -> str:
    etag = reading.strong_etag(text)
    if not etag:
        raise BadAnswer("the answer to a write has no valid ETag")
    return etag


def _compare(expected: Checksum | None, answered: str, headers: Headers) -> None:
    # S3 sends composite checksums both with and without "-N".
    if (
        expected is not None
        and answered
        and answered.partition("-")[0] != expected.value.partition("-")[0]
    ):
        raise BadDigest(
            f"the server stored a {expected.name} that differs from the one sent",
            request_id=request_id(headers),
        )


def _date_ns(headers: Headers) -> int:
    return reading.http_date_ns(reading.header(headers, "date") or "")


def _answer(headers: Headers, body: bytes, root: str, what: str) -> dict[str, str]:
    """Return the fields of an answer with the element `root`. Raises the error it contains."""
    fields: dict[str, str] = {}

    def on_end(depth: int, name: str, texts: list[str]) -> None:
        if depth == 1:
            fields.setdefault(name, "".join(texts))

    # S3 may send spaces before the XML declaration: see `errors`.
    found = read_xml(_ECHOED.sub(b"", body.lstrip()), ANSWER_MAX_BYTES, on_end)
    if found == "Error":
        raise error_from_response(500, headers, body, what=what)
    if found != root:
        raise BadAnswer(f"the answer is <{reading.printable(found, 40)}>, not <{root}>")
    return fields
