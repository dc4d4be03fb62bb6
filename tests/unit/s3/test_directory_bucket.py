"""Appends and renames over the CRT, as S3 documents them; never sent to other buckets.

No real directory bucket is used: see `directory_bucket`.
"""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from mountpoint import errors
from mountpoint.config import BucketConfig
from mountpoint.s3.aws.endpoint import resolve
from mountpoint.s3.client import ALWAYS, Body, Checksum, Condition, PutOptions, Written
from mountpoint.s3.crt.client import CrtClient
from tests.unit.aws_fakes import isolate
from tests.unit.directory_bucket import (
    DirectoryBucket,
    connected,
    crc32c,
    directory_bucket,
    endpoint_of,
)

#: Protection against a hang, not a measure of speed.
SAFE_S = 30.0
NAME = "bkt--use1-az4--x-s3"
ABSENT = Condition(absent=True)
PLAIN = PutOptions(checksum="crc32c")


def body(data: bytes) -> Body:
    return Body([data], len(data), Checksum("crc32c", crc32c(data)))


def failure(future: "Future[Any]") -> BaseException | None:
    return future.exception(SAFE_S)


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
def bucket() -> Iterator[DirectoryBucket]:
    """A directory bucket."""
    with directory_bucket() as made:
        yield made


@pytest.fixture
def client(bucket: DirectoryBucket) -> Iterator[CrtClient]:
    """A client of the bucket."""
    with connected(endpoint_of(bucket)) as made:
        yield made


# --- appends ---


def test_an_append(bucket: DirectoryBucket, client: CrtClient) -> None:
    """Offset, checksum, condition and encryption are sent in a session, and nothing else."""
    options = PutOptions("EXPRESS_ONEZONE", "aws:kms", "k", "text/x", {"a": "b"}, "crc32c")
    first = client.append_object(b"a b", body(b"12345"), offset=0, options=options).result(SAFE_S)
    second = client.append_object(
        b"a b", body(b"678"), offset=5, options=options, condition=Condition(etag=first.etag)
    ).result(SAFE_S)
    assert bucket.objects[b"a b"] == (b"12345678", second.etag)
    assert second == Written(second.etag, "", 1_714_558_272_000_000_000)
    last = bucket.writes()[-1]
    assert last.target == "/a%20b"
    expected = {
        "x-amz-write-offset-bytes": "5",
        "x-amz-checksum-crc32c": crc32c(b"678"),
        "if-match": first.etag,
        "content-length": "3",
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "k",
        "x-amz-s3session-token": "session-token",
    }
    assert {name: last.headers.get(name) for name in expected} == expected
    assert not last.headers.keys() & {"content-type", "x-amz-storage-class", "x-amz-meta-a"}
    assert "Credential=session-key/" in last.headers["authorization"]


def test_appends_that_are_refused(bucket: DirectoryBucket, client: CrtClient) -> None:
    """Each refusal has its error, which is not retried."""
    etag = bucket.store(b"key", b"12345")

    def error(data: Body, offset: int, condition: Condition = ALWAYS) -> BaseException | None:
        future = client.append_object(
            b"key", data, offset=offset, options=PLAIN, condition=condition
        )
        return failure(future)

    assert type(error(body(b"x"), 4)) is errors.WrongOffset
    assert type(error(body(b"x"), 5, Condition(etag='"other"'))) is errors.PreconditionFailed
    assert type(error(body(b"x"), 5, ABSENT)) is errors.AlreadyExists
    wrong = Body([b"x"], 1, Checksum("crc32c", crc32c(b"y")))
    assert type(error(wrong, 5)) is errors.BadDigest
    bucket.max_parts = 0
    bucket.parts[b"key"] = 0
    assert type(error(body(b"x"), 5)) is errors.TooLarge
    assert bucket.objects[b"key"] == (b"12345", etag)


def test_an_append_that_became_something_else(bucket: DirectoryBucket, client: CrtClient) -> None:
    """The size in the answer must be the expected one."""
    plain = bucket.answer
    bucket.store(b"key", b"12345")

    def answer(asked: Any) -> Any:
        headers, text = plain(asked)
        return [(k, "1" if k == "x-amz-object-size" else v) for k, v in headers], text

    bucket.answer = answer  # type: ignore[method-assign]
    error = failure(client.append_object(b"key", body(b"x"), offset=5, options=PLAIN))
    assert isinstance(error, errors.S3Error)
    assert not error.retryable
    assert "1 bytes, not 6" in str(error)


# --- renames ---


@pytest.mark.parametrize("source", [b"plain", b"dir/a b+c%", "ü".encode(), b"not-utf8\xff"])
def test_a_rename(bucket: DirectoryBucket, client: CrtClient, source: bytes) -> None:
    """Source, version, condition and token are in an empty PUT; a repeated request is harmless."""
    etag = bucket.store(source, b"data")
    for _ in range(2):
        client.rename_object(
            source, b"new/key", source_etag=etag, condition=ABSENT, token="token-1"
        ).result(SAFE_S)
    assert bucket.objects == {b"new/key": (b"data", etag)}
    last = bucket.writes()[-1]
    assert last.target == "/new/key?renameObject"
    assert last.headers["x-amz-rename-source-if-match"] == etag
    assert last.headers["if-none-match"] == "*"
    assert last.headers["x-amz-client-token"] == "token-1"
    assert last.headers["content-length"] == "0"


def test_renames_that_are_refused(bucket: DirectoryBucket, client: CrtClient) -> None:
    """The error says which of the two objects has changed."""
    etag = bucket.store(b"a", b"data")
    other = bucket.store(b"b", b"other")

    def error(source: bytes, version: str, condition: Condition, token: str) -> object:
        return type(
            failure(
                client.rename_object(
                    source, b"b", source_etag=version, condition=condition, token=token
                )
            )
        )

    assert error(b"a", etag, ABSENT, "1") is errors.AlreadyExists
    assert error(b"a", other, ALWAYS, "2") is errors.PreconditionFailed
    assert error(b"a", etag, Condition(etag='"x"'), "3") is errors.PreconditionFailed
    assert error(b"nothing", etag, ALWAYS, "4") is errors.NotFound
    assert bucket.objects == {b"a": (b"data", etag), b"b": (b"other", other)}
    client.rename_object(
        b"a", b"b", source_etag=etag, condition=Condition(etag=other), token="5"
    ).result(SAFE_S)
    assert bucket.objects == {b"b": (b"data", etag)}


def test_a_rename_that_was_taken_for_a_put(bucket: DirectoryBucket, client: CrtClient) -> None:
    """An answer that only a PUT has is no success, and is not retried."""
    etag = bucket.store(b"a", b"data")
    bucket.ignorant = True
    error = failure(client.rename_object(b"a", b"b", source_etag=etag, condition=ABSENT, token="1"))
    assert isinstance(error, errors.S3Error)
    assert not error.retryable


# --- the guard ---


@pytest.mark.parametrize(
    ("options", "directory"),
    [
        ({}, True),
        ({"dual_stack": True}, True),
        ({"endpoint_url": "https://vpce-1.s3express-use1-az4.us-east-1.vpce.amazonaws.com"}, True),
        ({"endpoint_url": "http://vpce-1.s3express-use1-az4.us-east-1.vpce.amazonaws.com"}, False),
        ({"endpoint_url": "https://s3.us-east-1.amazonaws.com"}, False),
        ({"endpoint_url": "https://x.s3express-use1-az4.us-east-1.amazonaws.com.evil.org"}, False),
        ({"endpoint_url": "https://s3express-use1-az4.example.com"}, False),
        ({"endpoint_url": "http://127.0.0.1:9000"}, False),
        ({"endpoint_url": "https://minio"}, False),
        ({"endpoint_url": "https://minio", "force_path_style": True}, False),
    ],
)
def test_a_name_alone_is_no_directory_bucket(options: dict[str, Any], directory: bool) -> None:
    """With a custom endpoint, it must be one of AWS's, over TLS."""
    assert resolve(BucketConfig(NAME, **options), "us-east-1").directory is directory


@pytest.mark.parametrize("name", ["bucket", "bucket-x-s3", "bkt--use1-az4--x-s3-s3alias"])
def test_other_buckets_are_none(name: str) -> None:
    """All other buckets by S3's own rules are no directory buckets."""
    endpoint = resolve(BucketConfig(name), "us-east-1")
    assert endpoint.directory == (endpoint.signing_algorithm == "v4-s3express")
    assert not endpoint.directory


@pytest.mark.parametrize("name", ["bucket", NAME])
def test_nothing_is_sent_elsewhere(name: str) -> None:
    """The request is not sent to a store that would empty the file, with any bucket name."""
    with directory_bucket(ignorant=True) as store:
        config = BucketConfig(name, endpoint_url=store.url)
        endpoint = resolve(config, "us-east-1")
        assert endpoint.host == store.url.removeprefix("http://")
        with connected(endpoint) as client:
            assert not client.is_directory
            for future in (
                client.rename_object(b"a", b"b", source_etag='"e"', condition=ABSENT, token="1"),
                client.append_object(b"b", body(b"x"), offset=0, options=PLAIN),
            ):
                assert isinstance(failure(future), errors.NotOffered)
            counts = client.counters.snapshot()
            assert (counts["renames"], counts["puts"]) == (0, 0)
        assert store.asked == []
