"""Checks of access to the bucket, and to that of the shared cache. Nothing is written."""

import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from mountpoint.checks.checklist import Detail, Result, ok, skipped, warning
from mountpoint.checks.subject import Objects, Subject, known
from mountpoint.checks.words import size
from mountpoint.config import MIB
from mountpoint.errors import (
    AccessDenied,
    BadAnswer,
    MountError,
    NotFound,
    OperationError,
    PreconditionFailed,
    S3Error,
)
from mountpoint.fs.open import ARCHIVE_CLASSES
from mountpoint.metrics.recorder import Meters
from mountpoint.mount import preflight, shared_cache
from mountpoint.s3.aws.ec2 import Instance
from mountpoint.s3.client import ListPage, ObjectInfo, Transfer
from mountpoint.s3.connect import first_region, mount_error, reach
from mountpoint.s3.crt.client import CrtClient

#: Pages of the listing to search for an object to read, and the size that it should have.
MAX_PAGES = 3
PAGE_KEYS = 1000
LARGE_BYTES = 64 * MIB


def bucket(subject: Subject) -> Result:
    """Send the first request of a mount."""
    config = subject.config
    choice = known(subject.region)
    begun_s = time.monotonic()
    subject.client = reach(
        config.bucket,
        subject.credentials,
        choice,
        config.client,
        subject.environ,
        subject.stopping,
        subject.meters,
    )
    took_ms = round((time.monotonic() - begun_s) * 1e3)
    there = subject.client.endpoint
    moved = there != subject.endpoint
    subject.endpoint = there
    elsewhere = f"; S3 says that it is in {there.region}" if moved else ""
    return ok(
        f"it exists and can be listed{elsewhere}; first answer in {took_ms} ms",
        region=there.region,
        ms=took_ms,
    )


def listing(subject: Subject) -> Result:
    """Search a few pages for an object to read."""
    client, prefix = known(subject.client), subject.config.bucket.prefix
    found = subject.objects = Objects()
    token: str | None = None
    for _ in range(MAX_PAGES):
        page = _ask_page(subject, client, prefix, token)
        for info in page.objects:
            _see(found, info)
        token = page.next_token
        found.more = token is not None
        if found.large is not None or token is None:
            break
    if not found.seen:
        if prefix:
            return warning("there is no object with this prefix", "check --prefix", objects=0)
        return ok("the bucket is empty", objects=0)
    details: dict[str, Detail] = {"objects": found.seen, "largest_bytes": found.largest_bytes}
    said = f"{found.seen:,} {'object' if found.seen == 1 else 'objects'} seen"
    said += ", and there are more" * found.more + f"; the largest has {size(found.largest_bytes)}"
    if found.archived:
        details["archived"] = found.archived
        said += f"; {found.archived:,} in archive classes, to be restored before reading"
    return ok(said, **details)


def _ask_page(subject: Subject, client: CrtClient, prefix: bytes, token: str | None) -> ListPage:
    ask = partial(client.list, prefix, token=token, max_keys=PAGE_KEYS, flat=True)
    try:
        return subject.retry_policy().ask(ask).answer()
    except S3Error as error:
        raise mount_error(subject.config.bucket, client.endpoint.host, error) from error


def _see(found: Objects, info: ObjectInfo) -> None:
    found.seen += 1
    found.largest_bytes = max(found.largest_bytes, info.size_bytes)
    if info.storage_class in ARCHIVE_CLASSES and not info.restored:
        found.archived += 1
    elif info.size_bytes and info.etag:
        found.readable = found.readable or info
        if info.size_bytes >= LARGE_BYTES:
            found.large = found.large or info


def read(subject: Subject) -> Result:
    """Read one byte of the first object."""
    info = known(subject.objects).readable
    if info is None:
        return skipped("no readable object was found")
    client = known(subject.client)
    key = info.key.decode("utf-8", "surrogateescape")
    try:
        subject.retry_policy().ask(lambda: _OneByte(client, info).future).answer()
    except OperationError as error:
        raise MountError(f"'{key}' cannot be read: {error}", _hint(error)) from error
    return ok(f"'{key}' can be read", key=key)


def _hint(error: OperationError) -> str:
    if isinstance(error, AccessDenied):
        return "the credentials need s3:GetObject on the bucket's objects"
    if isinstance(error, PreconditionFailed):
        return "unless the object was just replaced, the store lists other ETags than it sends"
    return error.hint or "the store or a proxy answers differently from S3"


class _OneByte:
    """A GET of the first byte of a listed object version: a BodySink."""

    def __init__(self, client: CrtClient, info: ObjectInfo) -> None:
        self.future: Future[None] = Future()
        self._etag = info.etag
        self._size_bytes = 0
        self._other: PreconditionFailed | None = None
        self._transfer: Transfer = client.get(info, 0, 1, self)

    def on_headers(self, info: ObjectInfo) -> None:
        """Compare the version, as reads do."""
        if info.etag != self._etag:
            said = f"it is listed with the ETag {self._etag}, and sent with {info.etag}"
            self._other = PreconditionFailed(said)

    def on_body(self, chunk: bytes, offset: int) -> None:
        """Count the bytes."""
        self._size_bytes += len(chunk)

    def finish(self, error: Exception | None) -> None:
        """Pass the end on."""
        error = self._other or error
        if error is None and self._size_bytes != 1:
            error = BadAnswer(f"{self._size_bytes} bytes arrived instead of one")
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error) if error else self.future.set_result(None)


def write(subject: Subject) -> Result:
    """Report that nothing is written, and whether the bucket type is the one requested."""
    preflight.check_kind(subject.config, is_directory=known(subject.client).is_directory)
    if subject.config.mount.read_only:
        return skipped("--read-only: mount-s3 writes nothing")
    return skipped("not tried: --check writes nothing to the bucket")


def cache_bucket(subject: Subject) -> Result:
    """List the bucket of the shared cache, and look for an object that each mount writes."""
    config, environ = subject.config, subject.environ
    there = shared_cache.cache_bucket(config)
    if there is None:
        return skipped("--cache-xz is not given")
    client_config = replace(config.client, event_loops=1, native=False)
    instance = Instance(config.credentials.profile, environ)
    choice = first_region(there, config.credentials, environ, instance)
    try:
        client = reach(
            there,
            subject.credentials,
            choice,
            client_config,
            environ,
            subject.stopping,
            Meters(),
        )
    except MountError as error:
        raise shared_cache.unusable(error) from error
    try:
        return _read_cache(subject, client, there.name)
    finally:
        client.close()


def _read_cache(subject: Subject, client: CrtClient, name: str) -> Result:
    begun_s = time.monotonic()
    try:
        subject.retry_policy().ask(lambda: client.head(shared_cache.CHECK_KEY)).answer()
    except NotFound:
        pass  # no mount has used this bucket
    except S3Error as error:
        raise MountError(
            f"the shared cache in bucket '{name}' cannot be read ({error})",
            error.hint or shared_cache.NEEDED,
        ) from error
    took_ms = round((time.monotonic() - begun_s) * 1e3)
    region, mounted = client.endpoint.region, known(subject.client).endpoint.region
    kind = "directory bucket" if client.is_directory else "bucket"
    said = f"the {kind} '{name}' can be listed and read, an answer in {took_ms} ms"
    if region != mounted:
        return warning(
            f"{said}; but it is in {region}, the mounted one in {mounted}",
            "a cache is of use only if it is nearer than the mounted bucket",
            region=region,
            ms=took_ms,
        )
    return ok(f"{said}; writing is not tried", region=region, ms=took_ms)
