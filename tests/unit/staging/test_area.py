"""The staging directory: its limit, its readers, and the remains of dead mounts."""

import collections
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mountpoint.errors import MountError, StagingFault, StagingFull
from mountpoint.staging import area as area_module
from mountpoint.staging.area import StagingArea, check_staging_directory
from tests.unit.staging_world import MIB, World, data_of

ROOT = Path(__file__).parents[3]

#: A mount to be killed: a file that is in S3, one that is not, and one with missing ranges.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.staging_world import MIB, World, data_of
world = World(Path(sys.argv[1]))
synced = world.file(key=b"synced")
synced.write(0, b"in S3")
synced.sync()
written = world.file(key="geschrieben-ü".encode() + b"\\xff")
written.write(10, b"not in S3")
partly = world.file(world.bucket.put(data_of(3 * MIB), b"partly"), b"partly")
partly.read(0, 10)
partly.write(5000, b"changed")
partly.truncate(2 * MIB)
partly.truncate(4 * MIB)
removed = world.file(world.bucket.put(data_of(MIB), b"removed"), b"removed")
removed.write(0, b"changed")
removed.unlink(lambda: None, survives=True)
removed.write(9, b"afterwards")
if sys.argv[2] == "wait":
    print("ready", flush=True)
    sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


def child(directory: Path, mode: str = "die") -> "subprocess.Popen[str]":
    """Start such a mount."""
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(directory), mode],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed(directory: Path) -> Path:
    """Start a mount and kill it; return its directory."""
    with child(directory) as process:
        assert process.wait(60) == -signal.SIGKILL
    (left,) = directory.iterdir()
    return left


def names(directory: Path) -> list[str]:
    """Return the names in a directory."""
    return sorted(path.name for path in directory.iterdir())


# --- what dead mounts leave ---


def test_unuploaded_files_of_a_killed_mount_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next mount removes files that are in S3, describes the others, and logs their place."""
    left = killed(tmp_path)
    assert "000001.data" in names(left)
    StagingArea(str(tmp_path), "bucket", 16 * MIB).close()
    assert names(tmp_path) == [left.name]
    kept = [f"00000{n}.{suffix}" for n in (2, 3) for suffix in ("data", "journal", "json")]
    assert names(left) == [*kept, "lock"]
    assert (left / "000002.data").read_bytes() == bytes(10) + b"not in S3"
    told = json.loads((left / "000002.json").read_text())
    assert told["key"].encode("utf-8", "surrogateescape") == "geschrieben-ü".encode() + b"\xff"
    assert told["complete"]
    told = json.loads((left / "000003.json").read_text())
    assert told["key"] == "partly"
    assert told["size"] == 4 * MIB
    # Fetched bytes are not included, because they may be dropped at any time.
    assert told["missing"] == [[0, 5000], [5007, 2 * MIB]]
    whole = bytearray((left / "000003.data").read_bytes())
    expected = bytearray(data_of(2 * MIB)) + bytes(2 * MIB)
    for start, stop in told["missing"]:
        whole[start:stop] = expected[start:stop]
    expected[5000:5007] = b"changed"
    assert whole == expected
    lines = [line for line in capsys.readouterr().out.splitlines() if "it is kept" in line]
    assert [str(left / name) in line for name, line in zip(kept[::3], lines, strict=True)] == [
        True,
        True,
    ]


@pytest.mark.slow
def test_a_mount_of_another_bucket_says_nothing_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mount of another bucket keeps the files and does not log them."""
    left = killed(tmp_path)
    StagingArea(str(tmp_path), "another", 16 * MIB).close()
    assert "000002.data" in names(left)
    assert "000001.data" not in names(left)
    assert "it is kept" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_mount_that_lives_is_left_alone(tmp_path: Path) -> None:
    """Several mounts may share a staging directory."""
    with child(tmp_path, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (other,) = tmp_path.iterdir()
        before = names(other)
        StagingArea(str(tmp_path), "bucket", 16 * MIB).close()
        assert names(other) == before
        process.communicate("")


@pytest.mark.slow
def test_kept_files_may_be_removed_by_users(tmp_path: Path) -> None:
    """If a user removes the kept files, the next mount removes their directory."""
    left = killed(tmp_path)
    for path in left.glob("00000[23].*"):
        path.unlink()
    StagingArea(str(tmp_path), "bucket", 16 * MIB).close()
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_journal_that_makes_no_sense_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files with an unreadable journal are kept."""
    left = killed(tmp_path)
    (left / "000002.journal").write_bytes(b"\xff\0 what?\n")
    StagingArea(str(tmp_path), "bucket", 16 * MIB).close()
    assert (left / "000002.data").read_bytes() == bytes(10) + b"not in S3"
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.slow
def test_unacknowledged_extensions_are_discarded(tmp_path: Path) -> None:
    """If a mount is killed during a write that extends the file, the extension is discarded."""
    left = killed(tmp_path)
    with (left / "000002.data").open("ab") as file:
        file.write(b"half of a wri")
    StagingArea(str(tmp_path), "bucket", 16 * MIB).close()
    assert (left / "000002.data").read_bytes() == bytes(10) + b"not in S3"


@pytest.mark.slow
def test_files_of_other_users_are_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared directory each user's mounts clean up only their own files."""
    left = killed(tmp_path)
    before = names(left)
    monkeypatch.setattr("mountpoint.staging.recovery.os.geteuid", lambda: os.getuid() + 1)
    StagingArea(str(tmp_path), "bucket", 16 * MIB).close()
    assert names(left) == before


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link with the name of a mount's directory is not followed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("lock", "000001.data"):
        (elsewhere / name).touch()
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "mount-s3-link").symlink_to(elsewhere)
    StagingArea(str(staging), "bucket", 16 * MIB).close()
    assert names(elsewhere) == ["000001.data", "lock"]


def test_an_orderly_end_keeps_unuploaded_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An orderly end does the same, and the log has the place, also at the next mount."""
    world = World(tmp_path)
    written, synced = world.file(key=b"written"), world.file(key=b"synced")
    written.write(0, b"abc")
    synced.write(0, b"abc")
    synced.sync()
    path = world.area.path
    world.area.close()
    assert names(path) == ["000001.data", "000001.journal", "000001.json", "lock"]
    assert json.loads((path / "000001.json").read_text())["key"] == "written"
    assert capsys.readouterr().out.count("it is kept") == 1
    StagingArea(str(tmp_path), "bucket", 16 * MIB).close()
    assert capsys.readouterr().out.count("it is kept") == 1
    assert (path / "000001.data").read_bytes() == b"abc"


# --- limits ---


@pytest.mark.slow
def test_the_least_recently_used_file_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of bytes in S3 are dropped, the least recently used file's first; changes stay."""
    monkeypatch.setattr(area_module, "RECLAIM_BYTES", 4 * MIB)
    world = World(tmp_path, limit_bytes=32 * MIB)
    files = []
    for name in (b"a", b"b"):
        file = world.file(world.bucket.put(data_of(17 * MIB), name), name)
        for offset in range(0, 15 * MIB, MIB):
            file.read(offset, MIB)
        file.write(16 * MIB, b"changed")
        files.append(file)
    files[0].read(0, 10)  # so the other one is older
    new = world.file()
    new.write(0, data_of(4 * MIB))
    fetched = len(world.bucket.fetched)
    assert files[0].read(0, 15 * MIB) == data_of(15 * MIB)
    assert len(world.bucket.fetched) == fetched
    assert files[1].read(16 * MIB, 7) == b"changed"
    assert files[1]._content.missing(0, 15 * MIB)
    assert files[1].read(0, 15 * MIB) == data_of(15 * MIB)
    assert len(world.bucket.fetched) > fetched
    on_disk = sum(path.stat().st_blocks * 512 for path in world.area.path.glob("*.data"))
    assert on_disk <= world.area.used_bytes + 3 * 8192
    world.area.close()


def test_a_share_of_the_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If other programs fill the disk, the mount takes no more."""
    world = World(tmp_path)
    file = world.file()
    file.write(0, b"x")
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:4], world.area._keep_free_bytes // real.f_frsize, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(StagingFull):
        collections.deque((file.write(start, bytes(MIB)) for start in range(0, 64 * MIB, MIB)), 0)
    assert world.area.used_bytes <= area_module.LOOK_BYTES
    world.area.close()


def test_without_a_limit_half_of_the_free_space_is_taken(tmp_path: Path) -> None:
    """Other programs use the disk as well."""
    area = StagingArea(str(tmp_path), "bucket")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert 0.25 * free < area.limit_bytes < 0.75 * free
    area.close()


def test_too_little_room_is_said_when_mounting(tmp_path: Path) -> None:
    """A limit that is too small is refused."""
    with pytest.raises(MountError, match="too little space"):
        StagingArea(str(tmp_path), "bucket", 15 * MIB)
    assert names(tmp_path) == []


# --- the directory ---


def test_only_the_owner_can_read_staged_files(tmp_path: Path) -> None:
    """With any umask."""
    before = os.umask(0)
    try:
        world = World(tmp_path)
        file = world.file()
        file.write(0, b"secret")
        world.bucket.failure = StagingFault("no")
        with pytest.raises(StagingFault):
            file.sync()
        assert world.area.path.stat().st_mode & 0o777 == 0o700
        assert len(world.names()) == 4
        assert {path.stat().st_mode & 0o777 for path in world.area.path.iterdir()} == {0o600}
        world.area.close()
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.touch(), "is not a directory"),
    ],
)
def test_a_directory_that_cannot_be_is_refused(
    tmp_path: Path, prepare: Callable[[Path], None], said: str
) -> None:
    """The message says what is wrong and what to do, before the mount."""
    prepare(tmp_path / "staging")
    with pytest.raises(MountError, match=said) as caught:
        check_staging_directory(str(tmp_path / "staging"), "/mnt")
    assert caught.value.hint
    with pytest.raises(MountError):
        StagingArea(str(tmp_path / "staging"), "bucket", 16 * MIB)


@pytest.mark.parametrize("staging", ["mount", "mount/inside", "link/inside"])
def test_a_directory_inside_the_mount_is_refused(tmp_path: Path, staging: str) -> None:
    """The mount would hide the directory, and wait for itself."""
    (tmp_path / "mount" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to("mount")
    with pytest.raises(MountError, match="inside the mount"):
        check_staging_directory(str(tmp_path / staging), str(tmp_path / "mount"))
    check_staging_directory(str(tmp_path), str(tmp_path / "mount"))


@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o1777, False), (0o770, False)])
def test_a_directory_that_every_user_can_change(tmp_path: Path, mode: int, refused: bool) -> None:
    """Others could replace the files; a sticky bit prevents that, as in /tmp."""
    tmp_path.chmod(mode)
    if refused:
        with pytest.raises(MountError, match="every user can replace what is in the staging dir"):
            check_staging_directory(str(tmp_path), None)
    else:
        check_staging_directory(str(tmp_path), None)
