"""File attributes in the metadata of objects: other programs' forms, and invalid values."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.fs import posix_metadata
from mountpoint.fs.posix_metadata import ID_MAX, NOTHING, FileAttributes

MODES = st.integers(0, 0o7777)
IDS = st.integers(0, ID_MAX)
TIMES_NS = st.integers(0, (1 << 63) - 1_000_000_000)
ATTRIBUTES = st.builds(
    FileAttributes,
    st.none() | MODES,
    st.none() | IDS,
    st.none() | IDS,
    st.none() | TIMES_NS,
)
NAMES = st.sampled_from(["mode", "uid", "gid", "mtime", "ctime", "atime"])


@given(ATTRIBUTES)
def test_there_and_back(attributes: FileAttributes) -> None:
    """Written attributes are read again, completely."""
    assert posix_metadata.parsed(posix_metadata.formatted(attributes)) == attributes


@given(st.dictionaries(NAMES, st.text() | st.from_regex(r"[+-]?[0-9._eE]{1,40}")))
def test_any_metadata_of_a_server(metadata: dict[str, str]) -> None:
    """No value raises an error, and accepted ones can be shown by stat(2) and written again."""
    found = posix_metadata.parsed(metadata)
    assert found.mode is None or 0 <= found.mode <= 0o7777
    assert found.uid is None or 0 <= found.uid <= ID_MAX
    assert found.gid is None or 0 <= found.gid <= ID_MAX
    assert found.mtime_ns is None or 0 <= found.mtime_ns < 1 << 63
    assert posix_metadata.parsed(posix_metadata.formatted(found)) == found


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("33188", 0o644),  # s3fs
        ("33261", 0o755),
        ("35309", 0o4755),
        ("100644", 0o644),  # rclone
        ("0100600", 0o600),
        ("420", None),  # no type: another convention
        ("644", None),
        ("16877", None),  # a directory
        ("41471", None),  # a symbolic link
        ("-33188", None),
        ("33188.0", None),
        ("٣٣١٨٨", None),
        ("3_3188", None),
        ("33188\n", None),
        ("9" * 10_000, None),
        ("", None),
    ],
)
def test_modes(text: str, mode: int | None) -> None:
    """Decimal as s3fs writes it, octal as rclone does; all else counts as missing."""
    assert posix_metadata.parsed({"mode": text}).mode == mode


@pytest.mark.parametrize(
    ("text", "mtime_ns"),
    [
        ("1700000000", 1_700_000_000_000_000_000),
        ("1700000000.000000001", 1_700_000_000_000_000_001),
        ("1700000000.5", 1_700_000_000_500_000_000),  # rclone omits trailing zeros
        ("1700000000.1234567891", 1_700_000_000_123_456_789),
        ("0", 0),
        ("-1", None),
        ("1e9", None),
        ("nan", None),
        ("1700000000.", None),
        ("2006-01-02T15:04:05Z", None),
        ("9223372036.854775807", None),
        ("9" * 10_000, None),
    ],
)
def test_times(text: str, mtime_ns: int | None) -> None:
    """Seconds with a fraction, as s3fs and rclone write them; impossible times count as missing."""
    assert posix_metadata.parsed({"mtime": text}).mtime_ns == mtime_ns


@pytest.mark.parametrize("text", [str(ID_MAX + 1), "-1", "0x10", "root", "9" * 10_000])
def test_impossible_owners(text: str) -> None:
    """An impossible user or group counts as missing, and affects nothing else."""
    assert posix_metadata.parsed({"uid": text, "gid": "7"}) == FileAttributes(gid=7)


def test_written_forms() -> None:
    """The written forms are those that s3fs reads: a mode with its type, nine decimals."""
    attributes = FileAttributes(0o640, 1000, 100, 1_700_000_000_000_000_050)
    assert posix_metadata.formatted(attributes) == {
        "mode": str(stat.S_IFREG | 0o640),
        "uid": "1000",
        "gid": "100",
        "mtime": "1700000000.000000050",
    }
    assert posix_metadata.formatted(FileAttributes(mtime_ns=-5)) == {"mtime": "0"}
    assert posix_metadata.formatted(NOTHING) == {}


def test_metadata_of_others_stays() -> None:
    """Other metadata stays; a change time is removed after a change."""
    metadata = {"mode": "33188", "CTIME": "5", "atime": "6", "author": "me", "mtime": "7"}
    found = posix_metadata.replaced(metadata, FileAttributes(mode=0o600))
    assert found == {"atime": "6", "author": "me", "mode": "33152"}


def test_added_attributes() -> None:
    """Attributes are added to the existing metadata, which stays if it has them already."""
    metadata = {"mode": "100644", "author": "me"}
    assert posix_metadata.added(metadata, FileAttributes(mode=0o644)) is metadata
    assert posix_metadata.added(metadata, NOTHING) is metadata
    found = posix_metadata.added(metadata, FileAttributes(uid=5))
    assert found == {"mode": "33188", "uid": "5", "author": "me"}


def test_updates() -> None:
    """An update replaces only the given values."""
    before = FileAttributes(0o600, 1, 2, 3)
    assert before.updated(FileAttributes(uid=0, mtime_ns=0)) == FileAttributes(0o600, 0, 2, 0)
    assert before.updated(NOTHING) == before
