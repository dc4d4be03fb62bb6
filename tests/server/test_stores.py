"""The answers of each store to a mount's requests. tests/stores.py has the expected ones.

"yes" means that the store acts as S3. "ignored" means that it acts as if the header or parameter
had not been sent.
"""

import base64
import functools
import http.client
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from awscrt import checksums
from botocore.config import Config
from botocore.exceptions import ClientError

from mountpoint.fs.writes.probe import NO_PARTS, NO_UPLOAD
from tests.conftest import Store
from tests.stores import ANSWERS, IGNORED, NO, QUESTIONS, YES

pytestmark = pytest.mark.server

NO_ETAG = '"00000000000000000000000000000000"'
FIRST_PART = b"a" * (5 << 20)


@functools.cache
def _client(endpoint_url: str, access_key: str, secret: str) -> Any:
    # What goes over the wire is what the question says, and nothing by itself.
    config = Config(
        s3={"addressing_style": "path"},
        proxies={},
        retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret,
        config=config,
    )


def client_of(store: Store, secret: str | None = None) -> Any:
    """Return a client that adds nothing to a request; all questions to a store share it."""
    keys = store.environment
    return _client(
        store.endpoint_url, keys["AWS_ACCESS_KEY_ID"], secret or keys["AWS_SECRET_ACCESS_KEY"]
    )


class Asked:
    """A store that answers one question, with separate keys."""

    def __init__(self, store: Store, question: str) -> None:
        self.store = store
        self.at = {"Bucket": store.bucket}
        self.prefix = f"asked/{question}/"
        self.key = {**self.at, "Key": f"{self.prefix}one"}
        self.client = client_of(store)
        self.client.put_object(**self.key, Body=b"hello", ChecksumCRC32C=crc32c(b"hello"))

    # --- listing ---

    def pages_by_token(self) -> str:
        """ListObjectsV2 lists all keys, in several pages."""
        self._put("two", "three")
        keys: list[str] = []
        pages = self.client.get_paginator("list_objects_v2").paginate(
            **self.at, Prefix=self.prefix, PaginationConfig={"PageSize": 1}
        )
        for page in pages:
            if "KeyCount" not in page:
                return NO
            keys += [item["Key"] for item in page.get("Contents", [])]
        return YES if len(keys) == len(set(keys)) == 3 else NO

    def starts_after(self) -> str:
        """The listing begins after `start-after`."""
        self._put("two")
        return IGNORED if self.key["Key"] in self._listed(StartAfter=self.key["Key"]) else YES

    def encodes(self) -> str:
        """Keys are URL-encoded on request."""
        page = self.client.list_objects_v2(**self.at, Prefix=self.prefix, EncodingType="url")
        return YES if page.get("EncodingType") == "url" else IGNORED

    def order(self) -> str:
        """Keys are in byte order."""
        self._put("a/b", "a!")
        listed = self._listed()
        return "by bytes" if listed == sorted(listed) else "by folders"

    def virtual_hosts(self) -> str:
        """The bucket's name may be in the host name."""
        url = urlsplit(self.store.endpoint_url)
        host = f"{self.store.bucket}.s3.example.com:{url.port}"
        request = botocore.awsrequest.AWSRequest(
            "GET", f"http://{host}/{self.key['Key']}", headers={"Host": host}
        )
        keys = botocore.credentials.Credentials(
            self.store.environment["AWS_ACCESS_KEY_ID"],
            self.store.environment["AWS_SECRET_ACCESS_KEY"],
        )
        botocore.auth.S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)
        try:
            connection.request("GET", f"/{self.key['Key']}", headers=dict(request.headers.items()))
            return YES if connection.getresponse().read() == b"hello" else NO
        finally:
            connection.close()

    def signatures(self) -> str:
        """A wrong secret is refused."""
        return _heeded(lambda: client_of(self.store, "wrong" * 8).get_object(**self.key), 403)

    # --- conditions ---

    def get_if_match(self) -> str:
        """GetObject obeys If-Match."""
        return _heeded(lambda: self.client.get_object(**self.key, IfMatch=NO_ETAG))

    def put_if_none_match(self) -> str:
        """PutObject obeys If-None-Match."""
        return _heeded(lambda: self.client.put_object(**self.key, Body=b"x", IfNoneMatch="*"))

    def put_if_match(self) -> str:
        """PutObject obeys If-Match."""
        return _heeded(lambda: self.client.put_object(**self.key, Body=b"x", IfMatch=NO_ETAG))

    def complete_if_none_match(self) -> str:
        """CompleteMultipartUpload obeys If-None-Match."""
        return _heeded(lambda: self._upload(IfNoneMatch="*"))

    def complete_if_match(self) -> str:
        """CompleteMultipartUpload obeys If-Match."""
        return _heeded(lambda: self._upload(IfMatch=NO_ETAG))

    def copy_if_none_match(self) -> str:
        """CopyObject obeys If-None-Match."""
        return self._copied(IfNoneMatch="*")

    def copy_if_match(self) -> str:
        """CopyObject obeys If-Match."""
        return self._copied(IfMatch=NO_ETAG)

    def copy_source_if_match(self) -> str:
        """CopyObject obeys x-amz-copy-source-if-match."""
        return self._copied(CopySourceIfMatch=NO_ETAG)

    def part_source_if_match(self) -> str:
        """UploadPartCopy obeys x-amz-copy-source-if-match."""
        self._put("large", body=FIRST_PART)
        key = {**self.at, "Key": f"{self.prefix}copied"}
        upload = self.client.create_multipart_upload(**key)["UploadId"]
        source = f"{self.store.bucket}/{self.prefix}large"
        asked = {"CopySource": source, "CopySourceIfMatch": NO_ETAG, "PartNumber": 1}
        try:
            return _heeded(lambda: self.client.upload_part_copy(**key, UploadId=upload, **asked))
        finally:
            self.client.abort_multipart_upload(**key, UploadId=upload)

    def delete_if_match(self) -> str:
        """DeleteObject obeys If-Match."""
        return _heeded(lambda: self.client.delete_object(**self.key, IfMatch=NO_ETAG))

    # --- checksums ---

    def compares(self) -> str:
        """A body that does not match its checksum is refused."""
        wrong = crc32c(b"y")
        return _heeded(
            lambda: self.client.put_object(**self.key, Body=b"x", ChecksumCRC32C=wrong), 400
        )

    def tells(self) -> str:
        """PutObject returns the checksum."""
        answer = self.client.put_object(**self.key, Body=b"x", ChecksumCRC32C=crc32c(b"x"))
        return YES if answer.get("ChecksumCRC32C") == crc32c(b"x") else NO

    def sends(self) -> str:
        """GetObject returns the checksum."""
        answer = self.client.get_object(**self.key, ChecksumMode="ENABLED")
        return YES if answer.get("ChecksumCRC32C") == crc32c(b"hello") else NO

    def composes(self) -> str:
        """An object of parts has the checksum of its parts' checksums."""
        self._upload()
        head = self.client.head_object(**self.key, ChecksumMode="ENABLED")
        told = head.get("ChecksumCRC32C")
        if told is None:
            return NO
        parts = checksums.crc32c(FIRST_PART).to_bytes(4, "big")
        parts += checksums.crc32c(b"b").to_bytes(4, "big")
        return YES if told == f"{crc32c(parts)}-2" else "another"

    # --- inside ---

    def _put(self, *names: str, body: bytes = b"x") -> None:
        for name in names:
            self.client.put_object(**self.at, Key=self.prefix + name, Body=body)

    def _listed(self, **options: str) -> list[str]:
        page = self.client.list_objects_v2(**self.at, Prefix=self.prefix, **options)
        return [item["Key"] for item in page.get("Contents", [])]

    def _copied(self, **conditions: str) -> str:
        self._put("source")
        source = f"{self.store.bucket}/{self.prefix}source"
        return _heeded(lambda: self.client.copy_object(**self.key, CopySource=source, **conditions))

    def _upload(self, **conditions: str) -> None:
        upload = self.client.create_multipart_upload(
            **self.key, ChecksumAlgorithm="CRC32C", ChecksumType="COMPOSITE"
        )["UploadId"]
        parts = []
        for number, body in ((1, FIRST_PART), (2, b"b")):
            answer = self.client.upload_part(
                **self.key,
                UploadId=upload,
                PartNumber=number,
                Body=body,
                ChecksumCRC32C=crc32c(body),
            )
            part = {"PartNumber": number, "ETag": answer["ETag"]}
            if "ChecksumCRC32C" in answer:
                part["ChecksumCRC32C"] = answer["ChecksumCRC32C"]
            parts.append(part)
        try:
            self.client.complete_multipart_upload(
                **self.key, UploadId=upload, MultipartUpload={"Parts": parts}, **conditions
            )
        except ClientError:
            self.client.abort_multipart_upload(**self.key, UploadId=upload)
            raise


def crc32c(data: bytes) -> str:
    """Return a CRC32C as S3 writes it."""
    return base64.b64encode(checksums.crc32c(data).to_bytes(4, "big")).decode()


def _heeded(ask: Callable[[], object], status: int = 412) -> str:
    """Return whether the request is refused with this status."""
    try:
        ask()
    except ClientError as error:
        answered = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return YES if answered == status else f"{answered} {error.response['Error']['Code']}"
    return IGNORED


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers(each_store: Store, question: str) -> None:
    """Each store answers as the table says, no better and no worse."""
    answer = getattr(Asked(each_store, question), question)()
    assert answer == ANSWERS[question][each_store.name]


def test_completing_an_upload_that_does_not_exist(each_store: Store) -> None:
    """No store answers with a permission error, and nothing changes."""
    asked = Asked(each_store, "proof")
    absent = {**asked.at, "Key": f"{asked.prefix}none"}
    parts = {"Parts": [{"PartNumber": each.number, "ETag": each.etag} for each in NO_PARTS]}
    for key in (asked.key, absent):
        try:
            asked.client.complete_multipart_upload(
                **key, UploadId=NO_UPLOAD, MultipartUpload=parts, IfNoneMatch="*"
            )
            status = 200  # versitygw, as if the upload had been completed
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert status != 403
    assert asked.client.get_object(**asked.key)["Body"].read() == b"hello"
    listed = asked.client.list_objects_v2(**asked.at, Prefix=asked.prefix)
    assert [each["Key"] for each in listed["Contents"]] == [asked.key["Key"]]
