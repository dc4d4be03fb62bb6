"""Identities, and the paths of their blocks."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.cache.blocks._format import MAX_IDENTITY_BYTES
from mountpoint.cache.identity import Identity, Names, bucket_directory
from mountpoint.s3.client import ObjectInfo

ONE = Identity("store:9000/path", "bucket", '"etag"', 5, b"a/key")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80)
identities = st.builds(
    Identity, texts, texts, texts, st.integers(1, 1 << 50), st.binary(max_size=1024)
)


@given(identities)
def test_text(identity: Identity) -> None:
    """An identity can be read from its text, whatever is in the key."""
    assert Identity.parse(identity.text) == identity


@given(identities, identities)
def test_two_identities(one: Identity, other: Identity) -> None:
    """Two identities have two texts and two paths."""
    assert (one == other) == (one.text == other.text) == (one.path == other.path)


@given(identities)
def test_paths(identity: Identity) -> None:
    """A path has three names, of which nothing comes from the key, and none leads elsewhere."""
    assert re.fullmatch(
        r"(?!\.)[A-Za-z0-9._-]{0,64}-[0-9a-f]{8}/[0-9a-f]{2}/[0-9a-f]{30}", identity.path
    )
    assert identity.path.isascii()
    assert len(identity.path) < 120


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint", "other"),
        ("bucket", "other"),
        ("etag", '"other"'),
        ("size_bytes", 6),
        ("key", b"a/other"),
    ],
)
def test_every_field_counts(field: str, value: object) -> None:
    """Each field alone makes another identity, with another path."""
    other = replace(ONE, **{field: value})  # type: ignore[arg-type]
    assert other.text != ONE.text
    assert other.path != ONE.path


def test_similar_buckets() -> None:
    """Buckets whose names look alike in a path, or are at two stores, have two directories."""
    names = {
        bucket_directory(endpoint, bucket)
        for endpoint in ("one", "two")
        for bucket in ("a:b", "a/b", "a_b", ".a_b", "a" * 70, "a" * 71, "..", "")
    }
    assert len(names) == 16
    assert not any(name.startswith(".") or "/" in name for name in names)


@pytest.mark.parametrize(
    "info",
    [
        ObjectInfo(b"k", 5, 0, ""),
        ObjectInfo(b"k", 0, 0, '"e"'),
        ObjectInfo(b"k", 5, 0, '"\0"'),
        ObjectInfo(b"k", 5, 0, '"\udc80"'),
        ObjectInfo(b"k", 5, 0, '"' + "e" * MAX_IDENTITY_BYTES),
        ObjectInfo(b"k" * MAX_IDENTITY_BYTES, 5, 0, '"e"'),
    ],
    ids=["no ETag", "empty", "NUL", "no text", "a long ETag", "a long key"],
)
def test_none(info: ObjectInfo) -> None:
    """Some versions have no identity: they are not cached."""
    assert Identity.of("store", "bucket", info) is None
    assert Names("store", "bucket").of(info) is None


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.binary(max_size=100))
def test_names(endpoint: str, bucket: str, etag: str, key: bytes) -> None:
    """Streams find the same path and text as everyone else."""
    info = ObjectInfo(key, 5, 0, etag)
    identity = Identity.of(endpoint, bucket, info)
    expected = None if identity is None else (identity.path.encode(), identity.text)
    assert Names(endpoint, bucket).of(info) == expected


def test_the_longest() -> None:
    """The longest key of S3 and an ETag of its usual length have an identity."""
    info = ObjectInfo(b"k" * 1024, 5, 0, '"' + "e" * 32 + '-10000"')
    found = Identity.of("store", "bucket", info)
    assert found is not None
    assert found.key == info.key


@pytest.mark.parametrize("text", [b"", b"a\0b\0c", b"a\0b\0c\0many\0k", b"\xff\0b\0c\x001\0k"])
def test_no_text(text: bytes) -> None:
    """What is no identity's text is refused."""
    with pytest.raises(ValueError, match=r"values to unpack|invalid"):
        Identity.parse(text)
