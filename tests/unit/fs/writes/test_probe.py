"""The permission to write is checked with the first file, and not again."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mountpoint.config import MIB, WriteConfig
from mountpoint.errors import (
    AccessDenied,
    CredentialsUnavailable,
    NotOffered,
    S3Error,
    ServerFault,
)
from mountpoint.fs.inodes import ROOT
from mountpoint.staging.area import StagingArea
from tests.unit.fake_client import Fault, Request
from tests.unit.mounted import Mounted, mounted

DENIED = Fault(error=AccessDenied("denied", code="AccessDenied", status=403))


def kinds(world: Mounted) -> list[str]:
    """Return the kinds of all requests so far."""
    return [request.kind for request in world.client.requests]


def test_one_request_once() -> None:
    """The first file completes an unknown upload; later files send no such request."""
    with mounted(unproven=True) as world:
        for name in (b"a", b"b"):
            world.write_file(name, b"1")
        assert kinds(world) == ["complete_upload", "put_object", "put_object"]
        assert world.client.uploads == {}


def test_denied() -> None:
    """The open fails without remains and names the permission; the next one checks again."""
    with mounted(unproven=True) as world:
        world.client.inject("complete_upload", DENIED)
        world.client.inject("create_upload", DENIED)
        with pytest.raises(AccessDenied) as caught:
            world.create(b"a")
        assert "s3:PutObject" in caught.value.hint
        assert world.names() == []
        world.write_file(b"a", b"1")
        assert world.client.content(b"a") == b"1"


@pytest.mark.parametrize("flags", [os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
def test_files_that_are_there(flags: int) -> None:
    """An open to change a file checks as well; an open to read it does not."""
    with mounted({b"a": b"1"}, unproven=True, allow_overwrite=True, allow_append=True) as world:
        number = world.look(b"a").inode
        assert world.read_file(number) == b"1"
        assert world.client.count("complete_upload") == 0
        world.client.inject("complete_upload", DENIED)
        world.client.inject("create_upload", DENIED)
        with pytest.raises(AccessDenied):
            world.fs.open(number, flags)
        assert world.read_file(number) == b"1"


def test_staged_files(tmp_path: Path) -> None:
    """Staged files check at their open, both new and existing ones."""
    staging = StagingArea(str(tmp_path), "bucket", 64 * MIB)
    with mounted({b"a": b"1"}, staging=staging, unproven=True, allow_overwrite=True) as world:
        attempts: list[Callable[[], object]] = [
            lambda: world.create(b"b"),
            lambda: world.fs.open(world.look(b"a").inode, os.O_RDWR),
        ]
        for attempt in attempts:
            world.client.inject("complete_upload", DENIED)
            world.client.inject("create_upload", DENIED)
            with pytest.raises(AccessDenied):
                attempt()
        world.close(world.create(b"b"))
        assert world.client.content(b"b") == b""


def test_a_policy_that_wants_headers() -> None:
    """If a policy requires headers, an upload with the mount's encryption is begun and aborted."""
    with mounted(unproven=True, write=WriteConfig(sse="AES256")) as world:
        world.client.inject("complete_upload", DENIED)
        world.write_file(b"a", b"1")
        assert kinds(world) == ["complete_upload", "create_upload", "abort_upload", "put_object"]
        assert world.client.uploads == {}


@pytest.mark.parametrize(
    "error",
    [
        AccessDenied("HTTP status 403", status=403),
        NotOffered("not known", status=501),
        S3Error("bad request", code="InvalidArgument", status=400),
    ],
    ids=["a proxy's 403", "501", "400"],
)
def test_other_answers_refuse_no_write(error: S3Error) -> None:
    """After any other answer the upload itself shows the result."""
    with mounted(unproven=True) as world:
        world.client.inject("complete_upload", Fault(error=error))
        world.write_file(b"a", b"1")
        world.write_file(b"b", b"1")
        assert kinds(world) == ["complete_upload", "put_object", "put_object"]


def test_a_failing_store() -> None:
    """A fault is retried as usual; then the upload itself shows the result."""
    with mounted(unproven=True, total_s=0.2) as world:
        world.client.script = lambda request: (
            Fault(error=ServerFault("fault", status=500))
            if request.kind == "complete_upload"
            else None
        )
        world.write_file(b"a", b"1")
        assert world.client.content(b"a") == b"1"


def test_no_credentials() -> None:
    """Without credentials the open is denied, without an answer from S3."""
    with mounted(unproven=True) as world:

        def script(request: Request) -> Fault | None:
            return Fault(error=CredentialsUnavailable("none"))

        world.client.script = script
        with pytest.raises(CredentialsUnavailable):
            world.fs.create(ROOT, b"a", os.O_WRONLY, 0)


def test_an_upload_that_is_denied() -> None:
    """A policy may cover only some keys, so the next file checks again."""
    with mounted(unproven=True) as world:
        world.write_file(b"a", b"1")
        world.client.inject("put_object", DENIED)
        with pytest.raises(AccessDenied):
            world.write_file(b"b", b"1")
        world.write_file(b"c", b"1")
        assert kinds(world) == [
            "complete_upload",
            "put_object",
            "put_object",
            "complete_upload",
            "put_object",
        ]
