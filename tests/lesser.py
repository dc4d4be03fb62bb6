"""Stores that support less than S3, made from a real one: faults for a proxy before ministack.

Ministack checks no signatures. The faults for the proxy's `before` remove parts of requests that
the store does not support, or refuse them as real stores do. The faults for its `faults` change
answers to those of other stores and proxies.
"""

import html
import re
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

from tests.faulty_proxy import Exchange, Fault

#: Names on a page of a listing, where a store has small ones.
PAGE = 200


def without_parameter(*names: str) -> Fault:
    """Hide these parameters from the store."""

    def fault(exchange: Exchange) -> None:
        path, _, query = exchange.target.partition("?")
        kept = [each for each in query.split("&") if each.partition("=")[0] not in names]
        exchange.target = f"{path}?{'&'.join(kept)}" if kept != [""] else path

    return fault


def small_pages(exchange: Exchange) -> None:
    """List at most `PAGE` names at once, so that a few hundred names are several pages."""
    exchange.target = re.sub(r"max-keys=\d{3,}", f"max-keys={PAGE}", exchange.target)


def without_header(name: str) -> Fault:
    """Hide this header of a GET from the store."""

    def fault(exchange: Exchange) -> None:
        if exchange.method == "GET":
            exchange.request_headers.pop(name, None)

    return fault


def refuse_checksums(exchange: Exchange) -> None:
    """Refuse all checksum headers, with Backblaze B2's message.

    https://github.com/vatesfr/xen-orchestra/issues/8358
    """
    names = [name.lower() for name in exchange.request_headers]
    name = next((name for name in names if name.startswith("x-amz-checksum")), None)
    if name is not None:
        exchange.refuse(400, "InvalidArgument")
        text = f"Unsupported header '{name}' received for this API call."
        exchange.body = exchange.body.replace(b"a fault", text.encode())
        exchange.headers = [("Content-Length", str(len(exchange.body)))]


def refuse_conditions(exchange: Exchange) -> None:
    """Refuse conditions of writes, as S3 did before it supported them."""
    names = {name.lower() for name in exchange.request_headers}
    if exchange.is_write and names & {"if-match", "if-none-match"}:
        exchange.refuse(501, "NotImplemented")


def refuse_copied_parts(status: int, code: str) -> Fault:
    """Refuse UploadPartCopy."""

    def fault(exchange: Exchange) -> None:
        names = {name.lower() for name in exchange.request_headers}
        if "x-amz-copy-source" in names and "partNumber=" in exchange.target:
            exchange.refuse(status, code)

    return fault


class RefuseUnequalParts:
    """Refuse an object whose parts have different sizes, with Cloudflare R2's message.

    Use it in a proxy's `before`; `refused` counts.
    https://developers.cloudflare.com/r2/objects/multipart-objects/
    """

    def __init__(self) -> None:
        self.refused = 0
        self._sizes: dict[tuple[str, int], int] = {}  # by upload and number

    def __call__(self, exchange: Exchange) -> None:
        """See Fault."""
        query = dict(parse_qsl(urlsplit(exchange.target).query))
        upload_id = query.get("uploadId", "")
        if exchange.method == "PUT" and "partNumber" in query:
            copied = re.fullmatch(
                r"bytes=(\d+)-(\d+)", exchange.header("x-amz-copy-source-range") or ""
            )
            size = int(copied[2]) - int(copied[1]) + 1 if copied else exchange.body_size
            self._sizes[upload_id, int(query["partNumber"])] = size
        elif exchange.method == "POST" and upload_id:
            sizes = [size for (each, _), size in sorted(self._sizes.items()) if each == upload_id]
            if any(size != sizes[0] for size in sizes[:-1]) or sizes[-1] > sizes[0]:
                self.refused += 1
                exchange.refuse(400, "InvalidPart")
                text = b"All non-trailing parts must have the same length."
                exchange.body = exchange.body.replace(b"a fault", text)
                exchange.headers = [("Content-Length", str(len(exchange.body)))]


def refuse_if_match(exchange: Exchange) -> None:
    """Let no ETag match the condition of a GET, like a server that has only weak ones."""
    if exchange.method == "GET" and exchange.header("if-match") is not None:
        exchange.refuse(412, "PreconditionFailed")


def change_etags(change: Callable[[str], str]) -> Fault:
    """Return the fault that changes the form of ETags, in headers and listings."""

    def in_body(match: re.Match[bytes]) -> bytes:
        etag = html.unescape(match[1].decode())
        return f"<ETag>{html.escape(change(etag))}</ETag>".encode()

    def fault(exchange: Exchange) -> None:
        exchange.headers = [
            (name, change(value) if name.lower() == "etag" else value)
            for name, value in exchange.headers
        ]
        if exchange.is_list:
            exchange.body = re.sub(rb"<ETag>([^<]*)</ETag>", in_body, exchange.body)
            exchange.drop_header("content-length")
            exchange.headers.append(("Content-Length", str(len(exchange.body))))

    return fault


def without_lengths(exchange: Exchange) -> None:
    """Answer HEAD without a length, and GET of objects in chunks, as some proxies do."""
    if exchange.method == "HEAD" or (exchange.is_data and exchange.status in (200, 206)):
        exchange.chunked = True


#: A store that supports only ListObjects.
only_v1 = without_parameter("list-type", "start-after", "continuation-token")
