"""Stores that can do less than S3, made of real ones: faults for a proxy's `before` in front of
ministack, which checks no signatures. They take out of requests what the store is not to know, or
refuse it as stores do that were met.
"""

from tests.faulty_proxy import Exchange, Fault


def without_parameter(*names: str) -> Fault:
    """Let the store not see these parameters."""

    def fault(exchange: Exchange) -> None:
        path, _, query = exchange.target.partition("?")
        kept = [each for each in query.split("&") if each.partition("=")[0] not in names]
        exchange.target = f"{path}?{'&'.join(kept)}" if kept != [""] else path

    return fault


def without_header(name: str) -> Fault:
    """Let the store not see this header of a GET."""

    def fault(exchange: Exchange) -> None:
        if exchange.method == "GET":
            exchange.request_headers.pop(name, None)

    return fault


def refuse_checksums(exchange: Exchange) -> None:
    """Refuse all headers of checksums, in the words of Backblaze B2.

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
    """Refuse conditions of what writes, as S3 did before it knew any."""
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


#: A store that knows ListObjects only.
only_v1 = without_parameter("list-type", "start-after", "continuation-token")
