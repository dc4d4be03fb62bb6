"""Requests, listing pages and object headers: round trips, real pages, hostile ones."""

from pathlib import Path
from urllib.parse import parse_qs, quote_from_bytes, unquote_to_bytes, urlsplit
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mountpoint.errors import BadAnswer, Unusable
from mountpoint.s3.client import ListPage, ObjectInfo
from mountpoint.s3.wire import reading

DATA = Path(__file__).parents[2] / "data"
ETAG = '"5d41402abc4b2a76b9719d911017c592"'
#: The odd keys that were put into both stores before their answers were saved.
ODD_KEYS = {
    b"plain.txt",
    b"a b+c%2Bd.txt",
    b"ctl\x01\x1f.txt",
    b"new\nline.txt",
    b"<&>\"'.txt",
    "😀.txt".encode(),
    b"q?x=y#z",
    "é(1)*!~.txt".encode(),
    b"tab\there",
    "\u202emirror".encode(),
    b"empty",
}
ODD_PREFIXES = {b"a/", b"dir/", "grün/".encode(), b"sp ace/"}


def contents(
    key: str = "k",
    size: str = "5",
    date: str = "2024-05-01T10:11:12.000Z",
    etag: str = ETAG,
    more: str = "",
) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{date}</LastModified>"
        f"<ETag>{escape(etag)}</ETag><Size>{size}</Size>{more}</Contents>"
    )


def page(*entries: str, encoding: str = "url", truncated: str = "false", more: str = "") -> bytes:
    kind = f"<EncodingType>{encoding}</EncodingType>" if encoding else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
        f"<Prefix>ignored/</Prefix>{kind}<IsTruncated>{truncated}</IsTruncated>{more}"
        f"{''.join(entries)}</ListBucketResult>"
    ).encode()


# --- Requests ---


@given(st.binary())
def test_object_target_keeps_every_byte(key: bytes) -> None:
    """A key of any bytes can be decoded from its path, which has only safe characters."""
    target = reading.object_target("/bucket", key)
    assert target.startswith("/bucket/")
    assert unquote_to_bytes(target.removeprefix("/bucket/")) == key
    assert all(letter.isalnum() or letter in "-._~/%" for letter in target)
    assert target.isascii()


@pytest.mark.parametrize(
    ("key", "target"),
    [
        (b"a//b", "/a//b"),
        (b"./x/../y", "/./x/../y"),
        (b"/a", "//a"),
        (b"a b+c%", "/a%20b%2Bc%25"),
        (b"q?x=y#z", "/q%3Fx%3Dy%23z"),
        ("ü".encode(), "/%C3%BC"),
    ],
)
def test_object_target_does_not_normalize(key: bytes, target: str) -> None:
    """Segments are never merged or resolved, and characters with a meaning in URLs are encoded."""
    assert reading.object_target("", key) == target


@given(st.binary(), st.none() | st.text(), st.none() | st.binary(), st.integers(1, 1000))
def test_list_target_keeps_prefix_and_place(
    prefix: bytes, token: str | None, start_after: bytes | None, max_keys: int
) -> None:
    """Prefix, token or start can be decoded from the query, which never has both of the latter."""
    target = reading.list_target(
        "", prefix, token=token, start_after=start_after, max_keys=max_keys
    )
    url = urlsplit("http://host" + target)
    query = parse_qs(url.query, encoding="latin-1", strict_parsing=True, keep_blank_values=True)
    assert url.path == "/"
    assert query.pop("list-type") == ["2"]
    assert query.pop("encoding-type") == ["url"]
    assert query.pop("delimiter") == ["/"]
    assert query.pop("max-keys") == [str(max_keys)]
    assert query.pop("prefix", [""])[0].encode("latin-1") == prefix
    if token is not None:
        sent = query.pop("continuation-token")[0].encode("latin-1")
        assert sent == token.encode("utf-8", "surrogatepass")
    else:
        assert query.pop("start-after", [""])[0].encode("latin-1") == (start_after or b"")
    assert not query


def test_list_target_with_a_base_path() -> None:
    """Path-style listings use the bucket's path; without a delimiter they list everything below."""
    assert reading.list_target("/bucket", b"", delimiter=b"", token=None, max_keys=2) == (
        "/bucket?list-type=2&encoding-type=url&max-keys=2"
    )


def test_range_header() -> None:
    """A half-open range becomes S3's inclusive one; an empty one is a programming error."""
    assert reading.range_header(0, 1) == "bytes=0-0"
    assert reading.range_header(8 << 20, 16 << 20) == "bytes=8388608-16777215"
    with pytest.raises(ValueError, match="not a range"):
        reading.range_header(5, 5)


# --- Listings that real stores sent ---


@pytest.mark.parametrize("store", ["seaweedfs", "ministack"])
def test_real_page_with_odd_keys(store: str) -> None:
    """Every odd key comes back byte for byte, with each store's encoding."""
    listed = reading.parse_list((DATA / f"{store}-root.xml").read_bytes(), b"")
    assert {info.key for info in listed.objects} >= ODD_KEYS
    assert set(listed.prefixes) >= ODD_PREFIXES
    assert {info.etag for info in listed.objects} == {ETAG}
    assert {info.size_bytes for info in listed.objects} == {5}
    assert {info.storage_class for info in listed.objects} == {"STANDARD"}
    assert (listed.next_token, listed.skipped) == (None, 0)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("seaweedfs-truncated", "a b+c%2Bd.txt"),
        ("ministack-truncated", "YSBiK2MlMkJkLnR4dA=="),
        ("ministack-next", "Y3RsAR8udHh0"),
    ],
)
def test_real_token_is_never_decoded(name: str, token: str) -> None:
    """The token of a truncated page is used unchanged: `encoding-type` does not apply to tokens."""
    listed = reading.parse_list((DATA / f"{name}.xml").read_bytes(), b"")
    assert listed.next_token == token
    assert len(listed.objects) + len(listed.prefixes) == 3


def test_real_page_without_encoding() -> None:
    """A page without the encoding mark is used verbatim."""
    listed = reading.parse_list((DATA / "seaweedfs-unencoded.xml").read_bytes(), b"dir/")
    assert [info.key for info in listed.objects] == [b"dir/one", b"dir/two"]


@pytest.mark.parametrize("name", ["seaweedfs-root", "ministack-truncated"])
def test_real_page_cut_anywhere(name: str) -> None:
    """A page that is cut at any byte is BadAnswer, never a shorter listing."""
    body = (DATA / f"{name}.xml").read_bytes().rstrip()
    for length in range(len(body)):
        with pytest.raises(BadAnswer):
            reading.parse_list(body[:length], b"")


# --- Round trips ---

keys = st.binary(min_size=1, max_size=40)


@given(st.lists(keys, unique=True, max_size=8), st.lists(keys, unique=True, max_size=4))
@example([b"a b", b"a+b", b"a%20b", b"\xff\x00"], [b"x y+z"])
def test_encoded_page_round_trip(names: list[bytes], directories: list[bytes]) -> None:
    """Keys of any bytes survive a page with URL encoding, in order."""
    listed = reading.parse_list(
        page(
            *(contents(key=quote_from_bytes(b"p/" + name)) for name in names),
            *(
                f"<CommonPrefixes><Prefix>{quote_from_bytes(b'p/' + name)}%2F</Prefix>"
                "</CommonPrefixes>"
                for name in directories
            ),
        ),
        b"p/",
    )
    assert [info.key for info in listed.objects] == [b"p/" + name for name in names]
    assert listed.prefixes == [b"p/" + name + b"/" for name in directories]
    assert listed.skipped == 0


xml_text = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1
)


@given(st.lists(xml_text, unique=True, max_size=8))
@example(["a+b", "a%20b", "%", "&lt;"])
def test_plain_page_round_trip(names: list[str]) -> None:
    """Without URL encoding only XML's own escapes in a key are decoded."""
    listed = reading.parse_list(page(*(contents(key=escape(n)) for n in names), encoding=""), b"")
    assert [info.key for info in listed.objects] == [name.encode() for name in names]


@given(st.binary() | st.text().map(str.encode), st.binary(max_size=3))
def test_any_body_is_a_page_or_a_bad_answer(body: bytes, prefix: bytes) -> None:
    """Garbage raises only BadAnswer."""
    with pytest.raises(BadAnswer):
        reading.parse_list(body, prefix)


@given(st.data())
def test_a_damaged_page_is_a_page_or_a_bad_answer(data: st.DataObject) -> None:
    """Bytes changed anywhere give a valid page, or BadAnswer."""
    body = bytearray((DATA / "ministack-truncated.xml").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        listed = reading.parse_list(bytes(body), b"")
    except BadAnswer:
        return
    assert all(info.key and 0 <= info.size_bytes < 2**63 for info in listed.objects)
    assert all(prefix.endswith(b"/") for prefix in listed.prefixes)


# --- Entries that are read at once, beside expat ---


def outcome(body: bytes) -> ListPage | None:
    """Return the page, or None for a bad answer."""
    try:
        return reading.parse_list(body, b"")
    except BadAnswer:
        return None


def by_expat_alone(body: bytes) -> ListPage | None:
    """The same without parsing entries by the regular expression."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_entries_read", lambda body: (body, []))
        return outcome(body)


ODD_PIECES = [
    contents(key="a"),
    contents(key="b%2B", etag="&quot;x&amp;quot;&apos;&lt;&gt;&#39;&quot;"),
    contents(key="c", etag="&#x22;y&#x22;"),
    contents(key="d", more="<StorageClass>GLACIER</StorageClass>"),
    contents(key="e", more="<Owner><ID>75aa</ID></Owner>"),
    contents(key="f", more="<StorageClass/>"),
    contents(key="g").replace("><", "> <"),
    contents(key="h", more="<Size>6</Size>"),
    contents(key="ü"),
    contents(key="]]&gt;"),
    contents(key="]]>"),
    "<Contents/>",
    "<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>",
    "<Entries-read/>",
    "<Other>",
    "</Other>",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "<?x ",
    "?>",
    '<Other a="',
    '"/>',
    "text",
    "\n",
]


@given(st.lists(st.sampled_from(ODD_PIECES), max_size=8))
@example([ODD_PIECES[0], "<Other>", ODD_PIECES[0], "</Other>", ODD_PIECES[0]])
@example([ODD_PIECES[0], "<!--", ODD_PIECES[0], "-->"])
@example(['<Other a="', ODD_PIECES[0], '"/>'])
@example([ODD_PIECES[0], "<Entries-read/>"])
def test_entries_read_at_once(pieces: list[str]) -> None:
    """Entries of any form, in any place: the page equals expat's result entry by entry."""
    assert outcome(page(*pieces)) == by_expat_alone(page(*pieces))


@pytest.mark.parametrize("name", ["seaweedfs-truncated", "ministack-truncated"])
@given(st.data())
def test_damaged_entries_read_at_once(name: str, data: st.DataObject) -> None:
    """With bytes changed anywhere, the page or the refusal is expat's own."""
    body = bytearray((DATA / f"{name}.xml").read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert outcome(bytes(body)) == by_expat_alone(bytes(body))


@pytest.mark.parametrize("name", ["seaweedfs-root", "ministack-root"])
def test_most_entries_are_read_at_once(name: str) -> None:
    """For a real page expat sees one element instead of all entries, in any order."""
    body = (DATA / f"{name}.xml").read_bytes()
    rest, runs = reading._entries_read(body)
    assert b"<Key>" not in rest
    assert sum(map(len, runs)) == body.count(b"<Contents>")


# --- Entries that make no sense ---

BAD_ENTRIES = {
    "key outside the prefix": contents(key="other/x"),
    "no key": "<Contents><Size>1</Size></Contents>",
    "empty key": contents(key=""),
    "nothing at all": "<Contents/>",
    "negative size": contents(key="p/x", size="-1"),
    "absurd size": contents(key="p/x", size=str(2**63)),
    "very long size": contents(key="p/x", size="9" * 5000),
    "size with an underscore": contents(key="p/x", size="1_0"),
    "size in other digits": contents(key="p/x", size="١٢"),
    "empty size": contents(key="p/x", size=""),
    "bad date": contents(key="p/x", date="yesterday"),
    "no date": contents(key="p/x", date=""),
    "thirteenth month": contents(key="p/x", date="2024-13-01T00:00:00Z"),
    "date past 63 bits": contents(key="p/x", date="2300-01-01T00:00:00Z"),
    "ETag with a line break": contents(key="p/x", etag='"a\nx-evil: 1"'),
    "prefix outside": "<CommonPrefixes><Prefix>q/</Prefix></CommonPrefixes>",
    "prefix of the listing itself": "<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>",
    "prefix without delimiter": "<CommonPrefixes><Prefix>p/x</Prefix></CommonPrefixes>",
    "prefix missing": "<CommonPrefixes/>",
    "repeated key": contents(key="p/good", size="6"),
    "repeated prefix": "<CommonPrefixes><Prefix>p/d/</Prefix></CommonPrefixes>",
}


@pytest.mark.parametrize("entry", BAD_ENTRIES.values(), ids=BAD_ENTRIES.keys())
def test_bad_entry_is_left_out_and_counted(entry: str) -> None:
    """A bad entry costs only that entry; of two values the first counts."""
    listed = reading.parse_list(
        page(
            contents(key="p/good"),
            "<CommonPrefixes><Prefix>p/d/</Prefix></CommonPrefixes>",
            entry,
            contents(key="p/also"),
        ),
        b"p/",
    )
    assert [(info.key, info.size_bytes) for info in listed.objects] == [
        (b"p/good", 5),
        (b"p/also", 5),
    ]
    assert listed.prefixes == [b"p/d/"]
    assert listed.skipped == 1


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("2024-05-01T10:11:12Z", 1714558272),
        ("2024-05-01T10:11:12.000Z", 1714558272),
        ("2024-05-01T10:11:12.999999999Z", 1714558272),
        ("2024-05-01T12:11:12+02:00", 1714558272),
        ("2024-05-01T10:11:12", 1714558272),
        ("0001-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_listed_dates(date: str, seconds: int) -> None:
    """Any ISO 8601 form gives whole seconds, as HEAD does; Go's zero date gives 0."""
    listed = reading.parse_list(page(contents(date=date)), b"")
    assert listed.objects[0].mtime_ns == seconds * 10**9


def test_listing_details() -> None:
    """Storage class and restore status are parsed; a missing ETag is empty; no owner."""
    restored = (
        "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress>"
        "<RestoreExpiryDate>2030-01-01T00:00:00Z</RestoreExpiryDate></RestoreStatus>"
    )
    running = "<RestoreStatus><IsRestoreInProgress>true</IsRestoreInProgress></RestoreStatus>"
    archive = "<StorageClass>GLACIER</StorageClass>"
    owner = "<Owner><ID>75aa57f0</ID><DisplayName>someone</DisplayName></Owner>"
    listed = reading.parse_list(
        page(
            contents(key="a", more=archive + restored + owner),
            contents(key="b", more=archive + running),
            contents(key="c", etag=""),
        ),
        b"",
    )
    assert [(i.key, i.storage_class, i.restored, i.etag) for i in listed.objects] == [
        (b"a", "GLACIER", True, ETAG),
        (b"b", "GLACIER", False, ETAG),
        (b"c", "STANDARD", False, ""),
    ]


def test_listing_with_white_space() -> None:
    """Indented XML is parsed like compact XML, and a key of spaces keeps them."""
    body = page(contents(key=" ")).replace(b"><", b">\n  <")
    assert reading.parse_list(body, b"").objects[0].key == b" "


# --- Pages that make no sense ---

BOMB = b"""<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY a "&lol;&lol;&lol;">]>
<ListBucketResult><IsTruncated>false</IsTruncated><Name>&a;</Name></ListBucketResult>"""
EXTERNAL = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<ListBucketResult><IsTruncated>false</IsTruncated><Name>&x;</Name></ListBucketResult>"""
BAD_PAGES = {
    "empty": b"",
    "not XML": b"hello",
    "HTML": b"<html><body>Sign in</body></html>",
    "HTML with a doctype": b"<!DOCTYPE html><html></html>",
    "an error body": (DATA / "seaweedfs-nobucket.xml").read_bytes(),
    "entity bomb": BOMB,
    "external entity": EXTERNAL,
    "external document type": b'<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x"><ListBucketResult/>',
    "undefined entity": page(contents(key="&nope;")),
    "deep": b"<ListBucketResult>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"</ListBucketResult>",
    "truncated without a token": page(contents(), truncated="true"),
    "truncated with an empty token": page(
        truncated="true", more="<NextContinuationToken></NextContinuationToken>"
    ),
    "neither truncated nor complete": page(truncated="perhaps"),
    "two roots": page() + page(),
    "a control character": page(contents(key="&#1;")),
    "invalid UTF-8": page(contents(key="X")).replace(b"X", b"\xff"),
    "too large": page(more=" " * reading.LIST_BODY_MAX_BYTES),
}


@pytest.mark.parametrize("body", BAD_PAGES.values(), ids=BAD_PAGES.keys())
def test_page_that_makes_no_sense(body: bytes) -> None:
    """A body that is no listing, or might expand, loop or end early, is BadAnswer."""
    with pytest.raises(BadAnswer) as caught:
        reading.parse_list(body, b"")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


# --- Headers ---

HEAD = [
    ("Content-Length", "5"),
    ("ETag", ETAG),
    ("Last-Modified", "Wed, 01 May 2024 10:11:12 GMT"),
]


def with_header(name: str, value: str | None) -> reading.Headers:
    rest = [(key, text) for key, text in HEAD if key.lower() != name.lower()]
    return rest if value is None else [*rest, (name, value)]


def test_object_info_of_head() -> None:
    """HEAD: length, ETag with quotes, date; the storage class defaults to STANDARD."""
    assert reading.object_info(b"k", 200, HEAD) == ObjectInfo(b"k", 5, 1714558272 * 10**9, ETAG)
    assert reading.object_info(b"k", 200, [(k.upper(), v) for k, v in HEAD]).size_bytes == 5


def test_metadata_of_head_and_get() -> None:
    """The user metadata, with names in lower case; LIST has none."""
    kept = [("X-Amz-Meta-Mode", "33152"), ("x-amz-meta-uid", " 7 "), ("x-amz-meta-A", "x")]
    assert reading.object_info(b"k", 200, HEAD).metadata == {}
    found = reading.object_info(b"k", 200, HEAD + kept).metadata
    assert found == {"mode": "33152", "uid": "7", "a": "x"}
    ranged = [*HEAD[1:], ("Content-Range", "bytes 0-4/99"), *kept]
    assert reading.object_info(b"k", 206, ranged).metadata == found


def test_object_info_of_ranged_get() -> None:
    """206: the total of Content-Range is the size, not the length of the part."""
    headers = with_header("Content-Range", "bytes 10-14/99")
    assert reading.object_info(b"k", 206, headers).size_bytes == 99
    assert reading.content_range(headers) == (10, 15, 99)
    assert reading.content_range(HEAD) is None
    with pytest.raises(BadAnswer):
        reading.object_info(b"k", 206, HEAD)


@pytest.mark.parametrize(
    "value",
    ["bytes */5", "bytes 0-4/*", "bytes 4-0/5", "bytes 0-5/5", "items 0-4/5", "", "bytes 0-4/1_0",
     f"bytes 0-4/{2**63}", "bytes 0-4/" + "9" * 5000],
)  # fmt: skip
def test_senseless_content_range(value: str) -> None:
    """A range that is unknown, reversed, or beyond its own total is BadAnswer."""
    with pytest.raises(BadAnswer):
        reading.content_range([("content-range", value)])


@pytest.mark.parametrize("length", [None, "", "-1", "five", "5.0", "1_0", str(2**63), "9" * 5000])
def test_senseless_length(length: str | None) -> None:
    """An object whose length is missing, negative or no number is BadAnswer."""
    with pytest.raises(BadAnswer, match=r"Content-Length|size"):
        reading.object_info(b"k", 200, with_header("Content-Length", length))


def test_two_lengths() -> None:
    """Two different lengths are BadAnswer; the same one twice is not."""
    assert reading.object_info(b"k", 200, [*HEAD, ("content-length", "5")]).size_bytes == 5
    with pytest.raises(BadAnswer, match="two different"):
        reading.object_info(b"k", 200, [*HEAD, ("content-length", "6")])


def test_length_that_only_the_caller_knows() -> None:
    """A missing length comes from the caller; one in the answer overrides it."""
    chunked = with_header("Content-Length", None)
    assert reading.object_size(200, chunked) is None
    assert reading.object_info(b"k", 200, chunked, size_bytes=7).size_bytes == 7
    assert reading.object_info(b"k", 200, HEAD, size_bytes=7).size_bytes == 5
    with pytest.raises(Unusable):
        reading.object_info(b"k", 200, chunked)
    with pytest.raises(BadAnswer):
        reading.object_info(b"k", 200, with_header("Content-Length", "x"), size_bytes=7)


FORMS = {ETAG: ETAG, ETAG.strip('"'): ETAG, f"W/{ETAG}": ETAG, f" {ETAG}": ETAG, '"': '"""'}


@pytest.mark.parametrize(("told", "etag"), FORMS.items())
def test_forms_of_one_etag(told: str, etag: str) -> None:
    """Without quotes, or weak: the same version, in listings and headers."""
    assert reading.strong_etag(told) == etag
    assert reading.object_info(b"k", 200, with_header("ETag", told)).etag == etag
    (listed,) = reading.parse_list(page(contents(etag=told)), b"").objects
    assert listed.etag == etag


@pytest.mark.parametrize("told", ["", '""', 'W/""', " "])
def test_a_missing_etag(told: str) -> None:
    """A listing may lack it; an object that is read has one."""
    (listed,) = reading.parse_list(page(contents(etag=told)), b"").objects
    assert listed.etag == ""
    with pytest.raises(BadAnswer, match="ETag"):
        reading.object_info(b"k", 200, with_header("ETag", told))


@pytest.mark.parametrize("etag", [None, "", '"a\r\nb"', '"ü"'])
def test_senseless_etag(etag: str | None) -> None:
    """An ETag that is missing, or invalid in If-Match, is BadAnswer."""
    with pytest.raises(BadAnswer, match="ETag"):
        reading.object_info(b"k", 200, with_header("ETag", etag))


@pytest.mark.parametrize(
    "date",
    [None, "", "yesterday", "Wed, 31 Feb 2024 10:11:12 GMT", "Wed, 01 May 9999 10:11:12 GMT",
     "Wed, 01 May 0000 10:11:12 GMT", "2024-05-01T10:11:12Z", "Wed, 01 May 2024 10:11:12 +0200"],
)  # fmt: skip
def test_senseless_date_is_zero(date: str | None) -> None:
    """A missing or invalid date is 1970: the object can still be read."""
    assert reading.object_info(b"k", 200, with_header("Last-Modified", date)).mtime_ns == 0


@given(st.text())
def test_any_header_text_is_an_info_or_a_bad_answer(text: str) -> None:
    """Any header value raises only BadAnswer."""
    for name in ("Content-Length", "ETag", "Last-Modified", "x-amz-restore", "Content-Range"):
        for status in (200, 206):
            try:
                info = reading.object_info(b"k", status, with_header(name, text))
            except BadAnswer:
                continue
            assert 0 <= info.size_bytes < 2**63


@pytest.mark.parametrize(
    ("restore", "restored"),
    [
        ('ongoing-request="false", expiry-date="Fri, 21 Dec 2030 00:00:00 GMT"', True),
        ('ongoing-request="true"', False),
        ('ongoing-request="false"', False),
        ("", False),
    ],
)
def test_restore_header(restore: str, restored: bool) -> None:
    """An archived object is restored if the restore has ended and has an expiry date."""
    headers = [*HEAD, ("x-amz-restore", restore), ("x-amz-storage-class", "GLACIER")]
    info = reading.object_info(b"k", 200, headers)
    assert (info.storage_class, info.restored) == ("GLACIER", restored)
