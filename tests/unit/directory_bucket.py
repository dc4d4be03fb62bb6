"""A small directory bucket as S3 documents it: an HTTP server on loopback, over a dictionary.

The tests cannot reach a real one. This one follows the API pages of CreateSession, PutObject
(`x-amz-write-offset-bytes`), HeadObject and RenameObject where a client could be wrong: sessions,
offsets, conditions, checksums, tokens. It does not check signatures. With `ignorant` it is a store
without appends and renames, which treats both as a PUT.
"""

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote_to_bytes

from mountpoint.config import ClientConfig, CredentialsConfig
from mountpoint.metrics.counters import Counters
from mountpoint.s3.aws.credentials import Credentials
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.wire import checksum

SESSION = """<?xml version="1.0" encoding="UTF-8"?>
<CreateSessionResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Credentials>
<SessionToken>session-token</SessionToken><SecretAccessKey>session-secret</SecretAccessKey>
<AccessKeyId>session-key</AccessKeyId><Expiration>2099-01-01T00:00:00Z</Expiration>
</Credentials></CreateSessionResult>"""
MODIFIED = "Wed, 01 May 2024 10:11:12 GMT"


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Refusal(Exception):
    """S3's refusal of a request."""

    def __init__(self, status: int, code: str, more: str = "") -> None:
        self.status = status
        self.text = f"<Error><Code>{code}</Code><Message>m</Message>{more}</Error>"


@dataclass
class DirectoryBucket:
    """The bucket: bytes and ETag by key."""

    ignorant: bool = False
    max_parts: int = 10_000
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    objects: dict[bytes, tuple[bytes, str]] = field(default_factory=dict)
    parts: dict[bytes, int] = field(default_factory=dict)
    renames: dict[str, Any] = field(default_factory=dict)
    versions: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def writes(self) -> list[Asked]:
        """Return the requests for objects, without HEADs."""
        return [each for each in self.asked if each.method == "PUT"]

    def answer(self, asked: Asked) -> tuple[list[tuple[str, str]], bytes]:
        """Carry out a request; return headers and body of the answer."""
        path, _, query = asked.target.partition("?")
        key = unquote_to_bytes(path.removeprefix("/"))
        if query.startswith("session"):
            return [], SESSION.encode()
        if not self.ignorant and asked.headers.get("x-amz-s3session-token") != "session-token":
            raise Refusal(403, "AccessDenied")
        if asked.method == "HEAD":
            return self._head(key)
        if asked.method != "PUT":
            raise Refusal(501, "NotImplemented")
        if query == "renameObject" and not self.ignorant:
            self._rename(key, asked.headers)
            return [], b""
        return self._put(key, asked), b""

    def _head(self, key: bytes) -> tuple[list[tuple[str, str]], bytes]:
        if key not in self.objects:
            raise Refusal(404, "NoSuchKey")
        data, etag = self.objects[key]
        headers = [("ETag", etag), ("Last-Modified", MODIFIED)]
        headers += [("x-amz-checksum-crc32c", crc32c(data)), ("Content-Length", str(len(data)))]
        return [*headers, ("x-amz-storage-class", "EXPRESS_ONEZONE")], b""

    def _put(self, key: bytes, asked: Asked) -> list[tuple[str, str]]:
        self._check(key, asked.headers)
        expected = asked.headers.get("x-amz-checksum-crc32c", crc32c(asked.body))
        if expected != crc32c(asked.body):
            raise Refusal(400, "BadDigest")
        before, _ = self.objects.get(key, (b"", ""))
        offset = asked.headers.get("x-amz-write-offset-bytes")
        headers = [("Date", MODIFIED)]
        if offset is None or self.ignorant:
            before, self.parts[key] = b"", 0
        elif int(offset) != len(before):
            raise Refusal(400, "InvalidWriteOffset")
        elif self.parts.get(key, 0) == self.max_parts:
            raise Refusal(400, "TooManyParts")
        else:
            headers.append(("x-amz-object-size", str(len(before) + len(asked.body))))
        self.parts[key] = self.parts.get(key, 0) + 1
        etag = self.store(key, before + asked.body)
        return [("ETag", etag), *headers]

    def store(self, key: bytes, data: bytes) -> str:
        """Put an object, which replaces the existing one; return its ETag."""
        self.versions += 1
        etag = f'"{hashlib.sha256(data).hexdigest()[:24]}{self.versions:08}"'
        self.objects[key] = data, etag
        return etag

    def _rename(self, key: bytes, headers: dict[str, str]) -> None:
        source = unquote_to_bytes(headers["x-amz-rename-source"])
        token = headers["x-amz-client-token"]
        asked = key, source, headers.get("if-none-match"), headers["x-amz-rename-source-if-match"]
        if token in self.renames:
            if self.renames[token] != asked:
                raise Refusal(400, "IdempotencyParameterMismatch")
            return
        if source not in self.objects:
            raise Refusal(404, "NoSuchKey")
        if self.objects[source][1] != headers["x-amz-rename-source-if-match"]:
            raise Refusal(
                412, "PreconditionFailed", "<Condition>x-amz-rename-source-if-match</Condition>"
            )
        self._check(key, headers)
        self.objects[key] = self.objects.pop(source)
        self.renames[token] = asked

    def _check(self, key: bytes, headers: dict[str, str]) -> None:
        if "if-none-match" in headers and key in self.objects:
            raise Refusal(412, "PreconditionFailed", "<Condition>If-None-Match</Condition>")
        if "if-match" in headers:
            if key not in self.objects:
                raise Refusal(404, "NoSuchKey")
            if self.objects[key][1] != headers["if-match"]:
                raise Refusal(412, "PreconditionFailed", "<Condition>If-Match</Condition>")


def crc32c(data: bytes) -> str:
    hashed = checksum.ALGORITHMS["crc32c"].new()
    hashed.update(data)
    return base64.b64encode(hashed.digest()).decode()


@contextmanager
def directory_bucket(*, ignorant: bool = False) -> Iterator[DirectoryBucket]:
    """Serve an empty bucket on a free port."""
    bucket = DirectoryBucket(ignorant=ignorant)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, self.path, headers, body)
            status = 200
            with bucket.lock:
                bucket.asked.append(asked)
                try:
                    answered, text = bucket.answer(asked)
                except Refusal as refusal:
                    status, answered, text = refusal.status, [], refusal.text.encode()
            self.send_response_only(status)
            for name, value in answered:
                self.send_header(name, value)
            if self.command != "HEAD" or status != 200:
                self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        do_PUT = do_HEAD = do_DELETE = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False  # connections that the client keeps open
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        bucket.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield bucket
        finally:
            server.shutdown()
            thread.join()


def endpoint_of(bucket: DirectoryBucket) -> Endpoint:
    """Return the endpoint with loopback as S3 Express, which only tests need."""
    host = bucket.url.removeprefix("http://")
    return Endpoint("http", host, "", "us-east-1", "s3express", "v4-s3express", True, False)


@contextmanager
def connected(endpoint: Endpoint) -> Iterator[CrtClient]:
    """Create a client that signs."""
    credentials = Credentials(CredentialsConfig())
    client = CrtClient(endpoint, credentials, ClientConfig(), counters=Counters())
    yield client
    client.close()
    credentials.close()
