"""Pure: GET, HEAD and LIST on the wire. Format targets and headers; parse headers and listings.

No I/O, no clock, no retries; `errors` parses error answers. The caller compares continuation
tokens, checks that the answer has the range it asked for (`content_range`), and decides on retries.

The server is not trusted: numbers, dates and ETags are checked. A malformed entry of a listing is
dropped if the page as a whole is well-formed.
"""

import functools
import re
import string
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

from mountpoint.errors import BadAnswer, Unusable
from mountpoint.s3.client import NO_METADATA, ListPage, ObjectInfo
from mountpoint.s3.wire.errors import Headers, error_from_response, printable
from mountpoint.s3.wire.xml import read_xml

__all__ = [
    "Headers",
    "content_range",
    "described",
    "error_from_response",
    "header",
    "http_date_ns",
    "is_header_text",
    "iso_date_ns",
    "list_target",
    "metadata",
    "object_info",
    "object_size",
    "object_target",
    "parse_list",
    "printable",
    "range_header",
    "strong_etag",
    "url_decoded",
    "verbatim",
]

#: Bytes of keys that paths have as they are.
UNRESERVED = f"{string.ascii_letters}{string.digits}_.-~/".encode()

#: A page of 1,000 keys of 1,024 bytes, each byte as "%XX", has 3.3 MB.
LIST_BODY_MAX_BYTES = 16 << 20
#: The largest `off_t`.
SIZE_MAX_BYTES = (1 << 63) - 1
#: The last whole second whose nanoseconds fit in 63 bits (the year 2262).
_MTIME_MAX_S = SIZE_MAX_BYTES // 1_000_000_000

#: ISO 8601 has 35 with nanoseconds and a zone. Parsed dates are cached, so bound their length.
DATE_MAX_CHARS = 40


# --- Requests ---


def object_target(base_path: str, key: bytes) -> str:
    """Return the request path of an object.

    Every byte is percent-encoded except unreserved ones and "/", as signatures require
    (https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, UriEncode).
    "//", "." and ".." are ordinary parts of a key and stay.
    """
    if not key.rstrip(UNRESERVED):  # the usual case, five times as fast
        return f"{base_path}/{key.decode()}"
    return f"{base_path}/{quote_from_bytes(key, safe='/')}"


def list_target(
    base_path: str,
    prefix: bytes,
    *,
    delimiter: bytes = b"/",
    token: str | None,
    start_after: bytes | None = None,
    max_keys: int,
    by_marker: bool = False,
) -> str:
    """Return path and query of a ListObjectsV2 request, or of ListObjects with `by_marker`.

    A token includes the position, so `start_after` is only for a first page.

    The request asks for `encoding-type=url`. Without it, one key with a control character, which
    XML 1.0 cannot carry, makes the whole page unreadable.
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjects.html
    """
    query = f"encoding-type=url&max-keys={max_keys}"
    if not by_marker:
        query = f"list-type=2&{query}"
    if delimiter:
        query += f"&delimiter={quote_from_bytes(delimiter, safe='')}"
    if prefix:
        query += f"&prefix={quote_from_bytes(prefix, safe='')}"
    if by_marker:
        marker = _key_of_marker(token) if token is not None else start_after
        query += f"&marker={quote_from_bytes(marker, safe='')}" if marker else ""
    elif token is not None:
        query += f"&continuation-token={quote(token, safe='', errors='surrogatepass')}"
    elif start_after:
        query += f"&start-after={quote_from_bytes(start_after, safe='')}"
    return f"{base_path or '/'}?{query}"


def range_header(start: int, stop: int) -> str:
    """Return the Range header for the half-open byte range [start, stop), which is not empty."""
    if not 0 <= start < stop:
        raise ValueError(f"not a range: [{start}, {stop})")
    return f"bytes={start}-{stop - 1}"


# --- Listings ---

Fields = dict[str, str]
#: An entry's texts in the order of LISTED; "" for a missing one.
Listed = tuple[str, ...]
LISTED = (
    "Key",
    "Size",
    "LastModified",
    "ETag",
    "StorageClass",
    "IsRestoreInProgress",
    "RestoreExpiryDate",
)

#: An element whose text is plain ASCII, with at most XML's own escapes.
_ELEMENT = r"<{0}>([ !-%'-;=?-~]*(?:&(?:quot|amp|lt|gt|apos|#34|#39);[ !-%'-;=?-~]*)*)</{0}>"
#: An entry that is flat, without text between its elements.
_ENTRY = re.compile(r"<Contents>((?:<([A-Za-z]{1,32})>[^<]*</\2>){1,12})</Contents>")
_FIELD_NAME = re.compile(r"<([A-Za-z]+)>")
#: The element that replaces a run of entries that `_entries_read` has parsed.
_RUN = "Entries-read"
_RUN_MARK = f"<{_RUN}/>"
#: "&amp;" comes last, or its result would be unescaped a second time.
_ESCAPES = {
    "&quot;": '"',
    "&#34;": '"',
    "&apos;": "'",
    "&#39;": "'",
    "&lt;": "<",
    "&gt;": ">",
    "&amp;": "&",
}


def parse_list(body: bytes, prefix: bytes) -> ListPage:
    """Parse the body of a ListObjectsV2 answer.

    Malformed entries are dropped and counted. Raises BadAnswer if the page as a whole is unusable:
    not a listing, malformed, too large, or truncated without a token.
    """
    rest, runs = _entries_read(body)
    page, contents, common = _read_list(rest, runs) or _read_list(body, [])  # type: ignore[misc]

    truncated = page.get("IsTruncated", "false").strip().lower()
    if truncated not in ("true", "false"):
        raise BadAnswer("the listing is neither truncated nor complete")
    decode = url_decoded if page.get("EncodingType") == "url" else verbatim
    objects: dict[bytes, ObjectInfo] = {}
    for texts in contents:
        info = _listed_object(texts, prefix, decode)
        if info is not None:
            objects.setdefault(info.key, info)
    prefixes: dict[bytes, None] = {}
    for text in common:
        name = decode(text)
        if name.startswith(prefix) and name.endswith(b"/") and len(name) > len(prefix):
            prefixes.setdefault(name)
    # Pages of ListObjects always have Marker; those of ListObjectsV2 always have KeyCount.
    by_marker = "Marker" in page and "KeyCount" not in page
    next_token = None
    if truncated == "true":
        next_token = page.get("NextContinuationToken")
        if by_marker:
            last = [decode(texts[0]) for texts in contents[-1:]] + [*map(decode, common[-1:])]
            marker = decode(page.get("NextMarker", "")) or max(last, default=b"")
            next_token = marker.decode("utf-8", "surrogateescape")
        if not next_token:
            raise BadAnswer("a truncated listing has no continuation token")
    return ListPage(
        objects=list(objects.values()),
        prefixes=list(prefixes),
        next_token=next_token,
        skipped=len(contents) + len(common) - len(objects) - len(prefixes),
        encoded=decode is url_decoded,
        by_marker=by_marker,
    )


def _key_of_marker(token: str) -> bytes:
    return token.encode("utf-8", "surrogateescape")


def _entries_read(body: bytes) -> tuple[bytes, list[list[Listed]]]:
    """Take out the entries of the same form as the first; return the remaining body and them.

    Expat calls Python three times per element, 15,000 times a page, which takes 11 ms. An entry
    that consists only of elements with plain text is well-formed on its own, so a regular
    expression can parse it. One empty element replaces each run of such entries; the rest of the
    body stays as well-formed, or malformed, as before. Nothing is taken out where this might not
    hold (comments, CDATA, document types), or from a body that is too large.
    """
    if (
        len(body) > LIST_BODY_MAX_BYTES
        or not body.isascii()
        or b"<!" in body
        or b"<?" in body[1:]
        or _RUN.encode() in body
    ):
        return body, []
    text = body.decode("ascii")
    first = _ENTRY.search(text)
    names = [] if first is None else _FIELD_NAME.findall(first[1])
    if len(set(names)) < max(len(names), 1):
        return body, []
    # `pieces` alternates the text between entries and the fields of the next entry.
    pieces = re.split(f"<Contents>{''.join(map(_ELEMENT.format, names))}</Contents>", text)
    width = len(names) + 1
    between = pieces[::width]
    columns = dict(zip(names, (pieces[index::width] for index in range(1, width)), strict=True))
    nothing = [""] * (len(between) - 1)
    entries = list(zip(*(map(_unescaped, columns.get(n, nothing)) for n in LISTED), strict=True))
    rest = [between[0]]
    runs: list[list[Listed]] = []
    start = 0
    for stop, part in enumerate(between[1:], 1):
        if part:
            rest.append(part)
            runs.append(entries[start:stop])
            start = stop
    return _RUN_MARK.join(rest).encode(), runs


def _unescaped(text: str) -> str:
    if "&" in text:
        for escape, plain in _ESCAPES.items():
            text = text.replace(escape, plain)
    return text


def _read_list(
    body: bytes, runs: list[list[Listed]]
) -> tuple[Fields, list[Listed], list[str]] | None:
    """Return the fields of a page, its entries and its common prefixes, in order.

    `runs` are the entries parsed before. None if one of them was outside the list of entries.
    """
    page: Fields = {}
    contents: list[Listed] = []
    common: list[str] = []
    entry: Fields = {}
    waiting = iter(runs)
    misplaced = False

    def on_end(depth: int, name: str, texts: list[str]) -> None:
        nonlocal entry, misplaced
        if name == _RUN and runs:
            misplaced |= depth != 1
            contents.extend(next(waiting))
        elif depth >= 2:  # RestoreStatus has children; no other name repeats among them
            entry[name] = "".join(texts)
        elif depth == 1:
            if name == "Contents":
                contents.append(tuple(entry.get(field, "") for field in LISTED))
                entry = {}
            elif name == "CommonPrefixes":
                common.append(entry.get("Prefix", ""))
                entry = {}
            else:
                page[name] = "".join(texts)

    root = read_xml(body, LIST_BODY_MAX_BYTES, on_end)
    if root != "ListBucketResult":
        raise BadAnswer(f"the answer to a listing is <{printable(root, 40)}>: is this S3?")
    return None if misplaced else (page, contents, common)


def verbatim(text: str) -> bytes:
    """Return a key that the server did not encode, as bytes."""
    return text.encode("utf-8", "surrogatepass")


def url_decoded(text: str) -> bytes:
    """Decode S3's own URL encoding, in which "+" is a space and "%2B" a plus sign."""
    encoded = text.encode("utf-8", "surrogatepass")
    if b"+" in encoded:
        encoded = encoded.replace(b"+", b" ")
    return unquote_to_bytes(encoded) if b"%" in encoded else encoded


def _listed_object(
    texts: Listed, prefix: bytes, decode: Callable[[str], bytes]
) -> ObjectInfo | None:
    """Return one entry of a listing, or None if it is malformed.

    The ETag may be missing ("" then): stores omit it for an object that is still being written.
    """
    key_text, size_text, date, etag, storage_class, in_progress, expiry = texts
    key = decode(key_text)
    size_bytes = _size(size_text)
    mtime_ns = iso_date_ns(date) if len(date) <= DATE_MAX_CHARS else None
    if not key or not key.startswith(prefix) or size_bytes is None or mtime_ns is None:
        return None
    strong = strong_etag(etag)
    if strong is None:
        return None
    return ObjectInfo(
        key,
        size_bytes,
        mtime_ns,
        strong,
        sys.intern(storage_class) or "STANDARD",  # 100,000 entries share one string
        in_progress == "false" and expiry != "",
    )


def _size(text: str) -> int | None:
    """Return a decimal number of bytes, or None. `int` alone accepts "1_0", " 1" and "١"."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        return None
    size_bytes = int(text)
    return size_bytes if size_bytes <= SIZE_MAX_BYTES else None


def is_header_text(text: str) -> bool:
    """Whether a value is safe in a header: it has no control characters."""
    return text.isascii() and text.isprintable()


def strong_etag(text: str) -> str | None:
    """Return an ETag in the form that S3 sends and If-Match needs; "" if there is none.

    None if the value is not safe in a header.

    Some stores list ETags without quotes (NetApp ONTAP). Proxies that may compress mark them as
    weak (`W/"..."`), in some answers and not in others. In each of these forms the text between the
    quotes identifies the version.
    https://www.rfc-editor.org/rfc/rfc9110#name-etag
    """
    text = text.strip().removeprefix("W/")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not is_header_text(text):
        return None
    return f'"{text}"' if text else ""


# --- Dates ---

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


@functools.lru_cache(maxsize=1000)
def iso_date_ns(text: str) -> int | None:
    """Return an ISO 8601 date as nanoseconds since 1970, in whole seconds; None if malformed.

    HEAD and GET have whole seconds only, and an object must not have two mtimes: `tar` and `rsync`
    would see a change. A date before 1970 gives 0: stores written in Go send the year 1 for
    "unknown".
    """
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        # `timestamp()` returns a float, which rounds.
        return _in_range_ns((moment - _EPOCH) // _SECOND)
    except (ValueError, OverflowError):
        return None


_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
#: https://www.rfc-editor.org/rfc/rfc9110#name-date-time-formats (IMF-fixdate)
_HTTP_DATE = re.compile(
    rf"[A-Z][a-z]{{2}}, (\d\d) ({'|'.join(_MONTHS)}) (\d{{4}}) (\d\d):(\d\d):(\d\d) GMT", re.ASCII
)


@functools.lru_cache(maxsize=1000)
def http_date_ns(text: str) -> int:
    """Return an HTTP date as nanoseconds since 1970; 0 if malformed, as the object still exists."""
    match = _HTTP_DATE.fullmatch(text)
    if match is None:
        return 0
    day, month, year, hour, minute, second = match.groups()
    try:
        moment = datetime(
            int(year),
            _MONTHS.index(month) + 1,
            int(day),
            int(hour),
            int(minute),
            int(second),
            tzinfo=UTC,
        )
    except ValueError:
        return 0
    return _in_range_ns((moment - _EPOCH) // _SECOND) or 0


def _in_range_ns(seconds: int) -> int | None:
    return max(seconds, 0) * 1_000_000_000 if seconds <= _MTIME_MAX_S else None


# --- Headers ---

METADATA_PREFIX = "x-amz-meta-"


def header(headers: Headers, name: str) -> str | None:
    """Return a header's value by its lower-case name. Raises BadAnswer if it appears twice."""
    found = None
    for key, value in headers:
        if key.lower() == name:
            if found is not None and found != value.strip():
                raise BadAnswer(f"two different {name} headers")
            found = value.strip()
    return found


_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)


def content_range(headers: Headers) -> tuple[int, int, int] | None:
    """Return (start, stop, total) of Content-Range in bytes, half-open; None if there is none.

    Raises BadAnswer if it is malformed or lacks the total.
    """
    value = header(headers, "content-range")
    if value is None:
        return None
    match = _CONTENT_RANGE.fullmatch(value)
    if match is not None:
        first, last, total = map(int, match.groups())
        if first <= last < total <= SIZE_MAX_BYTES:
            return first, last + 1, total
    raise BadAnswer(f"the Content-Range '{printable(value, 80)}' is invalid")


def object_size(status: int, headers: Headers) -> int | None:
    """Return the size in bytes of the whole object from a HEAD or GET answer; None if absent.

    Raises BadAnswer if the size is malformed.
    """
    if status == 206:
        bounds = content_range(headers)
        return None if bounds is None else bounds[2]
    length = header(headers, "content-length")
    size_bytes = None if length is None else _size(length)
    if length is not None and size_bytes is None:
        raise BadAnswer(f"the Content-Length '{printable(length, 40)}' is invalid")
    return size_bytes


def object_info(
    key: bytes, status: int, headers: Headers, *, size_bytes: int | None = None
) -> ObjectInfo:
    """Return the description of the whole object in the headers of a HEAD or GET answer.

    `size_bytes` is used if the answer has no size: a body that a proxy sends in chunks has no
    Content-Length. Raises BadAnswer if the size or ETag is missing or malformed.
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
    """
    answered = object_size(status, headers)
    size_bytes = size_bytes if answered is None else answered
    if size_bytes is None:
        raise Unusable("the answer has no size of the object", status=status)
    value = header(headers, "etag")
    if value is None:
        raise Unusable("the answer has no ETag of the object", status=status)
    etag = strong_etag(value)
    if not etag:
        raise BadAnswer(f"the ETag '{printable(value, 80)}' is invalid", status=status)
    return described(key, size_bytes, etag, headers)


#: The headers that describe an object, besides those of its size, version and user metadata.
DESCRIPTIONS = ("last-modified", "x-amz-storage-class", "x-amz-restore")


def described(key: bytes, size_bytes: int, etag: str, headers: Headers) -> ObjectInfo:
    """Return the description of an object whose size and ETag are known, by the other headers.

    Raises BadAnswer if one of them appears twice.
    """
    known: dict[str, str] = {}
    kept = {}
    for name, value in headers:  # once: there is one of these for each small file that is read
        name, value = name.lower(), value.strip()
        if name in DESCRIPTIONS:
            if name in known and known[name] != value:
                raise BadAnswer(f"two different {name} headers")
            known[name] = value
        elif name.startswith(METADATA_PREFIX):
            kept[name[len(METADATA_PREFIX) :]] = value
    restore = known.get("x-amz-restore", "")
    return ObjectInfo(
        key,
        size_bytes,
        http_date_ns(known.get("last-modified", "")),
        etag,
        known.get("x-amz-storage-class") or "STANDARD",
        'ongoing-request="false"' in restore and "expiry-date=" in restore,
        kept or NO_METADATA,
    )


def metadata(headers: Headers) -> dict[str, str]:
    """Return the user metadata, by lower-case names without the header prefix."""
    return {
        name[len(METADATA_PREFIX) :].lower(): value.strip()
        for name, value in headers
        if name.lower().startswith(METADATA_PREFIX)
    }
