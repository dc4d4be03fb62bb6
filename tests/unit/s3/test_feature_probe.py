"""The probe at mount, with a fake store that supports less than S3."""

import threading
from concurrent.futures import Future
from dataclasses import replace

import pytest

from mountpoint.errors import ChecksumsNotOffered, PreconditionFailed
from mountpoint.s3.capabilities import Capabilities
from mountpoint.s3.client import BodySink, ListPage, ObjectInfo, Transfer
from mountpoint.s3.feature_probe import NO_ETAG, probe
from tests.unit.fake_client import SAFE_S, FakeClient, Fault, Request

OBJECTS = {b"a": b"1", b"b": b"22"}


def found(client: FakeClient) -> Capabilities:
    """Return the capabilities of a store."""
    page = client.list(b"").result(SAFE_S)
    try:
        probe(client, b"", page, threading.Event(), client.capabilities)
    finally:
        client.close()
    return client.capabilities


@pytest.mark.parametrize("objects", [{}, {b"empty": b""}, OBJECTS])
def test_a_store_as_capable_as_s3(objects: dict[bytes, bytes]) -> None:
    """All features are found, also in an empty bucket."""
    assert found(FakeClient(objects)) == Capabilities()


def test_a_store_that_ignores_start_after() -> None:
    """A listing that begins with the start-after key shows it."""

    class FromTheStart(FakeClient):
        def list(
            self,
            prefix: bytes,
            *,
            token: str | None = None,
            start_after: bytes | None = None,
            max_keys: int = 1000,
            flat: bool = False,
        ) -> "Future[ListPage]":
            return super().list(prefix, token=token, max_keys=max_keys, flat=flat)

    assert found(FromTheStart(OBJECTS)) == Capabilities(starts_after=False)


def test_a_store_that_matches_no_etag() -> None:
    """If an object's own ETag is refused (weak ones never match), If-Match is not sent."""
    client = FakeClient(OBJECTS)

    def script(request: Request) -> Fault | None:
        return Fault(error=PreconditionFailed()) if request.kind == "get" else None

    client.script = script
    assert found(client) == Capabilities(matches=False)


def test_a_store_that_ignores_if_match() -> None:
    """A store that accepts an ETag that no object has does not compare at all."""

    class Ignorant(FakeClient):
        def get(self, version: ObjectInfo, start: int, stop: int, sink: BodySink) -> Transfer:
            return super().get(replace(version, etag=""), start, stop, sink)

    assert found(Ignorant(OBJECTS)) == Capabilities(matches=False)


def test_a_store_that_refuses_the_header_of_checksums() -> None:
    """Then reads are not compared."""
    client = FakeClient(OBJECTS)

    def script(request: Request) -> Fault | None:
        return Fault(error=ChecksumsNotOffered()) if request.if_match == NO_ETAG else None

    client.script = script
    assert found(client) == Capabilities(takes_checksum_mode=False)


def test_no_answer_is_taken_for_s3s_own_way() -> None:
    """Without an answer the store counts as S3."""
    client = FakeClient(OBJECTS)

    def script(request: Request) -> Fault | None:
        return Fault(error=ConnectionError()) if request.kind == "get" else None

    client.script = script
    assert found(client) == Capabilities()
