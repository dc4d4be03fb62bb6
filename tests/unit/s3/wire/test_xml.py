"""The parser of XML: what it tells its caller, and what it refuses."""

import pytest

from mountpoint.errors import BadAnswer
from mountpoint.s3.wire.xml import XML_MAX_DEPTH, read_xml


def ends(body: bytes, max_bytes: int = 1000) -> tuple[str, list[tuple[int, str, str]]]:
    """Return the root's name, and depth, name and text at each end tag."""
    found: list[tuple[int, str, str]] = []
    root = read_xml(body, max_bytes, lambda *end: found.append((*end[:2], "".join(end[2]))))
    return root, found


def test_end_tags_with_depth_and_text() -> None:
    """The text is that since the previous tag, with entities of XML itself resolved."""
    body = "<Root><Key>a &amp; é</Key><Owner><ID>7</ID></Owner></Root>".encode()
    assert ends(body) == (
        "Root",
        [(1, "Key", "a & é"), (2, "ID", "7"), (1, "Owner", ""), (0, "Root", "")],
    )


def test_utf_8_whatever_is_declared() -> None:
    """S3 sends UTF-8; a declaration does not choose another codec."""
    body = '<?xml version="1.0" encoding="ISO-8859-1"?><A>é</A>'.encode()
    assert ends(body) == ("A", [(0, "A", "é")])


def test_limits() -> None:
    """Size and depth are limited: exactly the limit is accepted."""
    deepest = b"<a>" * XML_MAX_DEPTH + b"</a>" * XML_MAX_DEPTH
    assert len(ends(deepest, len(deepest))[1]) == XML_MAX_DEPTH
    with pytest.raises(BadAnswer, match="more than"):
        ends(deepest, len(deepest) - 1)
    with pytest.raises(BadAnswer, match="nested deeper"):
        ends(b"<a>" + deepest + b"</a>")


@pytest.mark.parametrize(
    "body", [b"", b"<a>", b"<a></b>", b"text", b"<a/><b/>", b"<a>\xff</a>", b"<a>&x;</a>"]
)
def test_malformed(body: bytes) -> None:
    """What is not XML is a bad answer."""
    with pytest.raises(BadAnswer):
        ends(body)


@pytest.mark.parametrize(
    "doctype", [b"<!DOCTYPE a>", b'<!DOCTYPE a [<!ENTITY x "y">]>', b'<!DOCTYPE a SYSTEM "file:x">']
)
def test_document_types(doctype: bytes) -> None:
    """Document types and entities are refused, before anything is expanded."""
    with pytest.raises(BadAnswer, match="document type or entities"):
        ends(doctype + b"<a/>")
