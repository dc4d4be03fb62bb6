"""Which checksum covers which body, and whether the body matches."""

import base64
import hashlib
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.wire import checksum
from mountpoint.s3.wire.checksum import ALGORITHMS, Expected, Verification, expected

CHECK = b"123456789"
#: The algorithms' own test vectors.
VECTORS = {
    "crc64nvme": (CHECK, "ae8b14860a799888"),
    "crc32c": (CHECK, "e3069283"),
    "xxhash3": (b"", "2d06800538d394c2"),
    "xxhash128": (b"", "99aa06d3014798d86001c324468d497f"),
    "xxhash64": (b"", "ef46db3751d8e999"),
    "crc32": (CHECK, "cbf43926"),
    "sha1": (CHECK, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
    "sha256": (CHECK, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
    "sha512": (CHECK, hashlib.sha512(CHECK).hexdigest()),
    "md5": (CHECK, "25f9e794323b453885f5181f1b624d0b"),
}

SIZE = 20
CRC = zlib.crc32(CHECK).to_bytes(4, "big")
VALUE = base64.b64encode(CRC).decode()
NAME = "x-amz-checksum-crc32"
TYPE = "x-amz-checksum-type"


def promise(
    *headers: tuple[str, str], start: int = 0, stop: int = SIZE, etag: str = '"abc123"'
) -> Expected | None:
    """Return the checksum from an answer with these headers to [start, stop) of 20 bytes."""
    return expected(list(headers), ObjectInfo(b"k", SIZE, 0, etag), start, stop)


def digest_of(name: str, data: bytes) -> bytes:
    """Return a digest by the table."""
    state = ALGORITHMS[name].new()
    state.update(data)
    return state.digest()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms(name: str) -> None:
    """Each algorithm gives the digest and the length of its definition."""
    data, digest = VECTORS[name]
    assert digest_of(name, data).hex() == digest
    assert len(digest) == 2 * ALGORITHMS[name].size_bytes


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_understood(name: str) -> None:
    """A header of any algorithm counts, in any case."""
    digest = digest_of(name, CHECK)
    value = base64.b64encode(digest).decode()
    assert promise((f"X-Amz-Checksum-{name.upper()}", f" {value} ")) == Expected(name, digest)


def test_cheapest_first() -> None:
    """Of several the cheapest is compared, and invalid ones are skipped."""
    sha = ("x-amz-checksum-sha256", base64.b64encode(hashlib.sha256(CHECK).digest()).decode())
    assert promise(sha, (NAME, VALUE)) == Expected("crc32", CRC)
    assert promise(sha, (NAME, "AAAA")) == Expected("sha256", hashlib.sha256(CHECK).digest())


@pytest.mark.parametrize(
    ("start", "stop", "kind", "etag", "counts"),
    [
        (0, SIZE, "FULL_OBJECT", '"abc123"', True),
        (0, SIZE, "FULL_OBJECT", '"abc123-2"', True),
        (0, SIZE, "full_object", '"abc123"', True),
        (0, SIZE, None, '"abc123"', True),
        (0, SIZE, None, '"Random_Tag-of-another-store"', True),
        # Checksums of checksums without a "-N": by the type, or because S3 omitted it.
        (0, SIZE, None, '"abc123-2"', False),
        (0, SIZE, "COMPOSITE", '"abc123-2"', False),
        (0, SIZE, "COMPOSITE", '"abc123-1"', False),
        # One part of an upload.
        (0, 10, "COMPOSITE", '"abc123-2"', True),
        (10, SIZE, "COMPOSITE", '"abc123-2"', True),
        (5, 15, "COMPOSITE", '"RandomOfADirectoryBucket"', True),
        # The whole object's, sent with a range by a careless server.
        (0, 10, "FULL_OBJECT", '"abc123"', False),
        (1, SIZE, "FULL_OBJECT", '"abc123-2"', False),
        (0, 10, None, '"abc123"', False),
        (0, 10, None, '"abc123-2"', False),
        # Of an unknown type.
        (0, SIZE, "OTHER", '"abc123"', False),
        (0, 10, "OTHER", '"abc123"', False),
    ],
)
def test_checksums_count_for_their_bytes(
    start: int, stop: int, kind: str | None, etag: str, counts: bool
) -> None:
    """A checksum counts only for the bytes that it covers."""
    headers = [(NAME, VALUE)] + ([] if kind is None else [(TYPE, kind)])
    found = promise(*headers, start=start, stop=stop, etag=etag)
    assert found == (Expected("crc32", CRC) if counts else None)


@pytest.mark.parametrize("kind", [None, "COMPOSITE", "FULL_OBJECT"])
def test_composite(kind: str | None) -> None:
    """A checksum with "-N" covers the parts' checksums, so it can be compared only for one part."""
    headers = [] if kind is None else [(TYPE, kind)]
    assert promise((NAME, f"{VALUE}-2"), *headers) is None
    assert promise((NAME, f"{VALUE}-0"), *headers) is None
    assert promise((NAME, f"{VALUE}-1"), *headers) == Expected("crc32", CRC, of_part=True)
    assert promise((NAME, f"{VALUE}-1"), *headers, stop=10) is None
    assert promise((NAME, f"{VALUE}-2"), *headers, stop=10) is None


@pytest.mark.parametrize(
    "value",
    [
        *["", "-", "-1", "!!!", "é", "AAAA", "AAAAA===", VALUE[:-1], f"{VALUE}A"],
        *[f"{VALUE}-", f"{VALUE}-x", f"{VALUE}-1-1", f"{VALUE}-١", f"{VALUE[0]} {VALUE[1:]}"],
    ],
)
def test_malformed(value: str) -> None:
    """An invalid checksum counts as none."""
    assert promise((NAME, value)) is None
    assert promise((NAME, value), (TYPE, "COMPOSITE"), stop=10) is None


def test_nothing_promised() -> None:
    """No checksum, or only one of an unknown algorithm."""
    assert promise(("etag", '"abc123"')) is None
    assert promise(("x-amz-checksum-sha1024", VALUE), (TYPE, "FULL_OBJECT")) is None


@given(st.lists(st.tuples(st.sampled_from([NAME, TYPE, "etag"]), st.text()), max_size=4))
def test_any_header_text(headers: list[tuple[str, str]]) -> None:
    """Any headers give no checksum, or one with its algorithm's length."""
    for found in (promise(*headers), promise(*headers, stop=10)):
        assert found is None or len(found.digest) == ALGORITHMS[found.name].size_bytes


@given(
    st.sampled_from(sorted(ALGORITHMS)),
    st.binary(min_size=1, max_size=200),
    st.lists(st.integers(0, 200)),
    st.integers(0),
    st.booleans(),
)
def test_one_bit(name: str, data: bytes, cuts: list[int], bit: int, of_part: bool) -> None:
    """The right bytes match in any pieces; with one bit flipped they do not."""
    digest = digest_of(name, data)
    right = Expected(name, digest_of(name, digest) if of_part else digest, of_part)
    bit %= 8 * len(data)
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for body in (data, bytes(flipped)):
        verification = Verification(right)
        for start, stop in itertools.pairwise(edges):
            verification.update(body[start:stop])
        assert verification.matches() == (body == data)


@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=5))
def test_of_parts(parts: list[bytes]) -> None:
    """CRC64NVME of parts is that of all bytes; CRC32C that of the parts' own, with their number."""

    def digest(name: str, data: bytes) -> bytes:
        hashed = checksum.ALGORITHMS[name].new()
        hashed.update(data)
        return hashed.digest()

    whole = checksum.of_parts("crc64nvme", [(digest("crc64nvme", p), len(p)) for p in parts])
    assert whole == checksum.encoded(digest("crc64nvme", b"".join(parts)))
    own = [(digest("crc32c", p), len(p)) for p in parts]
    of_own = digest("crc32c", b"".join(each for each, _ in own))
    assert checksum.of_parts("crc32c", own) == f"{checksum.encoded(of_own)}-{len(parts)}"
