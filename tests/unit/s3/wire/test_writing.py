"""Writes: headers, targets and bodies; answers, including hostile ones."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.errors import BadAnswer, BadDigest, ServerFault
from mountpoint.s3.client import (
    ALWAYS,
    Body,
    Checksum,
    ChecksumName,
    Condition,
    ObjectInfo,
    PartDone,
    PendingUpload,
    PutOptions,
)
from mountpoint.s3.crt.body import BodyStream
from mountpoint.s3.wire import writing

ETAG = '"5d41402abc4b2a76b9719d911017c592"'
DATE = ("Date", "Wed, 01 May 2024 10:11:12 GMT")
DATE_NS = 1_714_558_272_000_000_000
CRC32C = Checksum("crc32c", "yZRlqg==")
COMPOSITE = Checksum("crc32c", "yZRlqg==-2")
FULL = Checksum("crc64nvme", "AAAAAAAAAAA=")


# --- requests ---


def test_targets() -> None:
    """Ids and keys are encoded; a part has a number."""
    target = writing.upload_target("/b", b"a b", "x/+=&", 7)
    assert target == "/b/a%20b?partNumber=7&uploadId=x%2F%2B%3D%26"
    assert writing.upload_target("", b"a", "x") == "/a?uploadId=x"
    listing = "?uploads&encoding-type=url&max-uploads=1000"
    assert writing.uploads_target("/b", b"", None) == f"/b{listing}"
    assert (
        writing.uploads_target("", b"p/", (b"p/ k", "id+"))
        == f"/{listing}&prefix=p%2F&key-marker=p%2F%20k&upload-id-marker=id%2B"
    )
    # Directory buckets have no NextUploadIdMarker.
    assert writing.uploads_target("", b"", (b"k", "")) == f"/{listing}&key-marker=k"


@pytest.mark.parametrize(
    ("bucket", "key", "source"),
    [
        ("b", b"plain/key", "b/plain/key"),
        ("b", b"a b+c%?", "b/a%20b%2Bc%25%3F"),
        ("b", "ü".encode() + b"\xff", "b/%C3%BC%FF"),
        ("b", b"/k", "b//k"),
        (
            "arn:aws:s3:us-east-1:111122223333:accesspoint/ap",
            b"k",
            "arn:aws:s3:us-east-1:111122223333:accesspoint/ap/object/k",
        ),
    ],
)
def test_copy_source(bucket: str, key: bytes, source: str) -> None:
    """The source is a bucket or ARN with a key, encoded."""
    assert writing.copy_source(bucket, key) == source


def test_headers_of_nothing() -> None:
    """Unset properties have no header."""
    assert writing.option_headers(PutOptions()) == []
    assert writing.create_headers(PutOptions()) == []
    assert writing.condition_headers(Condition()) == []
    assert writing.checksum_headers(None) == []
    size = [("x-amz-mp-object-size", "5")]
    assert writing.complete_headers(5, None, Condition()) == size


def test_headers() -> None:
    """Every property has its header."""
    options = PutOptions("GLACIER_IR", "aws:kms", "key-id", "text/x", {"mode": "1"}, "crc64nvme")
    said = [
        ("x-amz-storage-class", "GLACIER_IR"),
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "key-id"),
        ("Content-Type", "text/x"),
        ("x-amz-meta-mode", "1"),
    ]
    assert writing.option_headers(options) == said
    assert writing.create_headers(options) == [
        *said,
        ("x-amz-checksum-algorithm", "CRC64NVME"),
        ("x-amz-checksum-type", "FULL_OBJECT"),
    ]
    assert writing.condition_headers(Condition(absent=True)) == [("If-None-Match", "*")]
    assert writing.condition_headers(Condition(etag=ETAG)) == [("If-Match", ETAG)]
    assert writing.copy_headers("b/k", ETAG, options, Condition(absent=True)) == [
        ("x-amz-copy-source", "b/k"),
        ("x-amz-copy-source-if-match", ETAG),
        *said,
        ("x-amz-metadata-directive", "REPLACE"),
        ("x-amz-checksum-algorithm", "CRC64NVME"),
        ("If-None-Match", "*"),
    ]
    assert writing.copy_headers("b/k", ETAG, options, ALWAYS, keep_metadata=True)[2:] == [
        *said[:3],
        ("x-amz-checksum-algorithm", "CRC64NVME"),
    ]
    assert writing.copy_part_headers("b/k", ETAG, 5, 10)[2:] == [
        ("x-amz-copy-source-range", "bytes=5-9")
    ]


@pytest.mark.parametrize(
    ("checksum", "headers"),
    [
        (COMPOSITE, [("x-amz-checksum-type", "COMPOSITE")]),
        (FULL, [("x-amz-checksum-type", "FULL_OBJECT"), ("x-amz-checksum-crc64nvme", FULL.value)]),
    ],
)
def test_complete_headers(checksum: Checksum, headers: list[tuple[str, str]]) -> None:
    """The checksum of all bytes is sent; one of checksums comes from the parts."""
    first = [("x-amz-mp-object-size", "5"), ("If-None-Match", "*")]
    assert writing.complete_headers(5, checksum, Condition(absent=True)) == first + headers


def test_complete_body() -> None:
    """Parts have number, ETag, and the server's checksum."""
    body = writing.complete_body([PartDone(1, ETAG, CRC32C), PartDone(2, '"a<&"')])
    space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
    parts = ElementTree.fromstring(body)
    assert [[(e.tag.removeprefix(space), e.text) for e in part] for part in parts] == [
        [("PartNumber", "1"), ("ETag", ETAG), ("ChecksumCRC32C", CRC32C.value)],
        [("PartNumber", "2"), ("ETag", '"a<&"')],
    ]


# --- answers ---


def test_written() -> None:
    """ETag, checksum and date are parsed; the checksum may be missing."""
    told = ("x-amz-checksum-CRC32C", CRC32C.value)
    written = writing.written([("ETag", ETAG), DATE, told], CRC32C)
    assert (written.etag, written.checksum, written.date_ns) == (ETAG, CRC32C.value, DATE_NS)
    assert writing.written([("ETag", ETAG)], CRC32C).checksum == ""
    assert writing.written([("ETag", ETAG), told], None).checksum == ""
    with pytest.raises(BadDigest):
        writing.written([("ETag", ETAG), ("x-amz-checksum-crc32c", "AAAAAA==")], CRC32C)
    with pytest.raises(BadAnswer):
        writing.written([DATE], None)
    with pytest.raises(BadAnswer):
        writing.written([("ETag", "a\x01")], None)


def answer(root: str, fields: str) -> bytes:
    return f'<?xml version="1.0"?>\n<{root} xmlns="x">{fields}</{root}>'.encode()


def test_upload_id() -> None:
    """The id is found, even beside a key that XML cannot carry; a missing id is an error."""
    root = "InitiateMultipartUploadResult"
    body = answer(root, "<Bucket>b</Bucket><Key>a\x01b&#x1;</Key><UploadId>id</UploadId>")
    assert writing.upload_id([], body) == "id"
    for hostile in (
        answer(root, ""),
        answer(root, "<UploadId> </UploadId>"),
        answer(root, f"<UploadId>{'x' * 1025}</UploadId>"),
        answer(root, "<UploadId>a&#10;b</UploadId>"),
        answer("Other", "<UploadId>id</UploadId>"),
        answer(root, "<a><UploadId>id</UploadId></a>"),
        b"",
        b"x" * 70_000,
    ):
        with pytest.raises(BadAnswer):
            writing.upload_id([], hostile)


def completed(more: str) -> bytes:
    return answer("CompleteMultipartUploadResult", f"<ETag>{ETAG}</ETag>{more}")


@pytest.mark.parametrize(
    ("more", "fits"),
    [
        ("", True),
        ("<ChecksumCRC32C>yZRlqg==-2</ChecksumCRC32C>", True),
        ("<ChecksumCRC32C>AAAAAA==-2</ChecksumCRC32C>", False),
        ("<ChecksumType>COMPOSITE</ChecksumType><ChecksumCRC32C>yZRlqg==</ChecksumCRC32C>", True),
        ("<ChecksumType>COMPOSITE</ChecksumType><ChecksumCRC32C>AAAAAA==</ChecksumCRC32C>", False),
        # of another type, so not comparable
        ("<ChecksumType>FULL_OBJECT</ChecksumType><ChecksumCRC32C>AAA=</ChecksumCRC32C>", True),
        ("<ChecksumCRC32>AAAAAA==</ChecksumCRC32>", True),
    ],
)
def test_completed(more: str, fits: bool) -> None:
    """A success with a checksum other than that of the parts is a failure."""
    if fits:
        assert writing.completed([DATE], completed(more), COMPOSITE).etag == ETAG
    else:
        with pytest.raises(BadDigest):
            writing.completed([DATE], completed(more), COMPOSITE)
    assert writing.completed([DATE], b" \n" + completed(more), None).etag == ETAG


def test_an_error_in_an_answer() -> None:
    """An error in the body of a success is raised."""
    body = b"  \n" + answer("Error", "<Code>InternalError</Code><RequestId>R1</RequestId>")
    with pytest.raises(ServerFault) as caught:
        writing.completed([], body, None)
    assert (caught.value.code, caught.value.request_id) == ("InternalError", "R1")
    with pytest.raises(ServerFault):
        writing.copied([], body, "CopyObjectResult")


def test_copied() -> None:
    """A copy has an ETag and a date."""
    date = "<LastModified>2024-05-01T10:11:12.000Z</LastModified>"
    body = answer("CopyObjectResult", f"{date}<ETag>{ETAG}</ETag>")
    written = writing.copied([], body, "CopyObjectResult")
    assert (written.etag, written.date_ns) == (ETAG, DATE_NS)
    with pytest.raises(BadAnswer):
        writing.copied([], body, "CopyPartResult")


def test_the_checksum_of_a_copied_part() -> None:
    """A copied part has the checksum of its upload's algorithm, if any."""
    body = (
        b"<CopyPartResult><ETag>&quot;e&quot;</ETag><LastModified>2026-01-02T03:04:05Z</LastModified>"
        b"<ChecksumCRC32C>yZRlqg==</ChecksumCRC32C></CopyPartResult>"
    )
    names: tuple[ChecksumName | None, ...] = ("crc32c", "crc64nvme", None)
    told = [writing.copied([], body, "CopyPartResult", name) for name in names]
    assert [each.checksum for each in told] == ["yZRlqg==", "", ""]


def upload(key: str, identity: str = "id", date: str = "2024-05-01T10:11:12.000Z") -> str:
    return (
        f"<Upload><Key>{key}</Key><UploadId>{identity}</UploadId>"
        f"<Initiator><ID>x</ID></Initiator><Initiated>{date}</Initiated></Upload>"
    )


def test_uploads_page() -> None:
    """Pending uploads are listed with decoded keys; invalid entries are omitted."""
    body = answer(
        "ListMultipartUploadsResult",
        "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
        "<NextKeyMarker>p/z%20</NextKeyMarker><NextUploadIdMarker>m</NextUploadIdMarker>"
        + upload("p/a%01+b")
        + upload("other")
        + upload("p/b", identity="")
        + upload("p/c", date="never"),
    )
    page = writing.uploads_page(body, b"p/")
    assert page.uploads == [PendingUpload(b"p/a\x01 b", "id", DATE_NS)]
    assert page.next_marker == (b"p/z ", "m")
    last = answer("ListMultipartUploadsResult", upload("p/a%01+b"))
    page = writing.uploads_page(last, b"")
    assert [each.key for each in page.uploads] == [b"p/a%01+b"]
    assert page.next_marker is None
    endless = answer("ListMultipartUploadsResult", "<IsTruncated>true</IsTruncated>")
    for hostile in (answer("Other", ""), endless, b""):
        with pytest.raises(BadAnswer):
            writing.uploads_page(hostile, b"")


def test_stored() -> None:
    """Checksums are found by name; their type is no checksum."""
    info = ObjectInfo(b"k", 1, 0, ETAG)
    headers = [
        DATE,
        ("X-Amz-Checksum-CRC32C", "yZRlqg==-2 "),
        ("x-amz-checksum-type", "COMPOSITE"),
    ]
    assert writing.stored(info, headers).checksums == {"crc32c": "yZRlqg==-2"}


def test_options_from_a_head() -> None:
    """A HEAD gives the options for a similar object, without those that cannot be sent."""
    info = ObjectInfo(b"k", 1, 0, ETAG, "STANDARD_IA")
    headers = [
        DATE,
        ("content-type", "text/x"),
        ("X-Amz-Meta-Mode", "33188"),
        ("x-amz-meta-bad", "a\x01b"),
        ("cache-control", "no-store"),
        ("Expires", "never"),
    ]
    options = PutOptions(
        "STANDARD_IA",
        content_type="text/x",
        metadata={"mode": "33188"},
        headers={"Cache-Control": "no-store", "Expires": "never"},
    )
    assert writing.stored(info, headers).options == options
    for text, tags in (("3", 3), ("0", 0), ("-1", 0), ("many", 0)):
        assert writing.stored(info, [("x-amz-tagging-count", text)]).tags == tags
    assert writing.option_headers(options) == [
        ("x-amz-storage-class", "STANDARD_IA"),
        ("Content-Type", "text/x"),
        ("Cache-Control", "no-store"),
        ("Expires", "never"),
        ("x-amz-meta-mode", "33188"),
    ]


def test_an_answer_to_a_deletion_has_no_body() -> None:
    """A page of a captive portal is no answer to DeleteObject."""
    writing.deleted(b"")
    with pytest.raises(BadAnswer, match="is this S3"):
        writing.deleted(b"<html>Please log in</html>")


# --- bodies ---


@given(st.lists(st.binary(max_size=20), max_size=8), st.lists(st.integers(1, 30), min_size=1))
def test_a_body_is_read_in_any_steps(pieces: list[bytes], steps: list[int]) -> None:
    """Reads of any size return all bytes once, in order, also a second time."""
    stream = BodyStream(Body(pieces, sum(map(len, pieces))))
    for _ in range(2):
        found = b""
        for step in [*steps, 1000, 1000]:
            buffer = bytearray(step)
            count = stream.readinto1(memoryview(buffer))
            found += buffer[:count]
        assert found == b"".join(pieces)
        assert stream.seek(0) == 0
    with pytest.raises(ValueError, match="seek"):
        stream.seek(1)
    with pytest.raises(NotImplementedError):
        stream.read()
