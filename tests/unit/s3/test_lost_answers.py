"""Whether the stored object is the sent one, after a lost answer."""

from dataclasses import replace

import pytest

from mountpoint.errors import AccessDenied, NoSuchUpload, PreconditionFailed, S3Error, ServerFault
from mountpoint.s3.client import Body, Checksum, Condition, ObjectInfo, PartDone, Stored
from mountpoint.s3.lost_answers import (
    etag_of_body,
    etag_of_parts,
    is_appended,
    is_copy,
    is_first_part,
    is_sent,
    may_have_succeeded,
)

BODY = Body([b"hello"], 5, Checksum("crc32c", "mnG7TA=="))
MD5 = "5d41402abc4b2a76b9719d911017c592"


def stored(size_bytes: int = 5, etag: str = "", **checksums: str) -> Stored:
    return Stored(ObjectInfo(b"key", size_bytes, 0, etag), checksums)


@pytest.mark.parametrize(
    ("error", "retried", "may"),
    [
        (ServerFault("500"), False, True),
        (PreconditionFailed("412"), False, False),
        (PreconditionFailed("412"), True, True),
        (NoSuchUpload("404"), False, True),
        (AccessDenied("403"), False, False),
    ],
)
def test_writes_that_may_have_succeeded(error: S3Error, retried: bool, may: bool) -> None:
    """A refused first try has done nothing, unless its upload is gone."""
    assert may_have_succeeded(error, retried=retried) is may


@pytest.mark.parametrize(
    ("there", "ours"),
    [
        (stored(crc32c="mnG7TA=="), True),
        (stored(crc32c="mnG7TA==-2"), True),
        (stored(crc32c="AAAAAA==", etag=MD5), False),
        (stored(4, crc32c="mnG7TA=="), False),
        (stored(etag=f'"{MD5}"'), True),
        (stored(etag=MD5), True),
        (stored(etag='"another"'), False),
    ],
)
def test_a_sent_object(there: Stored, ours: bool) -> None:
    """Size and checksum decide, or the ETag if the store has no checksums."""
    assert is_sent(there, 5, BODY.checksum, lambda: etag_of_body(BODY)) is ours


def test_the_etag_of_parts() -> None:
    """S3's ETag: the MD5 of the parts' MD5s, and their number."""
    etag = '"d41d8cd98f00b204e9800998ecf8427e"'
    assert etag_of_parts([PartDone(1, etag)]) == "59adb24ef3cdbe0297f05b395827453f-1"
    assert etag_of_parts([PartDone(1, '"of its own"')]) == ""


def test_an_appended_part() -> None:
    """The object has grown by the part, and is another version."""
    before = ObjectInfo(b"key", 3, 0, '"before"')
    assert is_appended(stored(8, '"after"'), BODY, before)
    assert not is_appended(stored(8, '"before"'), BODY, before)
    assert not is_appended(stored(9, '"after"'), BODY, before)


def test_the_first_part() -> None:
    """It is not the version to replace, even if that looks the same."""
    there, condition = stored(5, '"a"', crc32c="mnG7TA=="), Condition(etag='"a"')
    assert is_first_part(there, BODY, Condition(absent=True))
    assert not is_first_part(there, BODY, condition)
    assert not is_first_part(replace(there, checksums={}), BODY, Condition(absent=True))


@pytest.mark.parametrize(
    ("there", "ours"),
    [
        (stored(5, "a"), True),
        (stored(5, '"b"', crc32c="x"), True),
        (stored(5, '"b"', crc32c="y"), False),
        (stored(5, '"b"'), False),
        (stored(6, '"a"'), False),
    ],
)
def test_a_copy(there: Stored, ours: bool) -> None:
    """It has the size and the ETag of its source, or one of its checksums."""
    assert is_copy(there, stored(5, '"a"', crc32c="x")) is ours
