"""The journal: open uploads are found, however their process ended."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mountpoint.config import BucketConfig
from mountpoint.upload import pending_journal
from mountpoint.upload.pending_journal import BucketAddress, Journal, default_directory, journals
from tests.soak import examples

ADDRESS = BucketAddress("bucket", "http://127.0.0.1:9000")
KEYS = [b"plain", b"a b/\n\x01", "ü".encode(), b"not-utf8\xff", b'quote"\\']

#: Prints a line when it has recorded its arguments, and waits to be killed.
WRITER = """
import sys, time
from pathlib import Path
from mountpoint.upload.pending_journal import Journal, BucketAddress
journal = Journal(Path(sys.argv[1]), BucketAddress("bucket", "http://127.0.0.1:9000"))
for name in sys.argv[2:]:
    journal.begun(f"key {name}".encode(), name)
journal.ended(sys.argv[2])
print("ready", flush=True)
time.sleep(600)
"""


def left(directory: Path) -> dict[str, tuple[bytes, bool]]:
    """Return the uploads of all journals: id to key, and whether their mount is dead."""
    with journals(directory) as found:
        return {
            each.upload_id: (each.key, one.dead) for one in found for each in one.uploads.values()
        }


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=60),
    max_struck=st.integers(0, 6),
    orderly=st.booleans(),
)
@settings(max_examples=examples(30), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sequence(
    steps: list[tuple[bool, int]],
    max_struck: int,
    orderly: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """At any moment other processes find the open uploads, however often the file is rewritten."""
    directory = tmp_path_factory.mktemp("journal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending_journal, "MAX_STRUCK", max_struck)
        journal = Journal(directory, ADDRESS)
        model: dict[str, bytes] = {}
        for begin, number in steps:
            name = f"id-{number}"
            if begin and name not in model:
                model[name] = KEYS[number % len(KEYS)]
                journal.begun(model[name], name)
            elif not begin:
                model.pop(name, None)
                journal.ended(name)
            assert left(directory) == {name: (key, False) for name, key in model.items()}
            assert len(files(directory)) <= 1
        if orderly:
            for name in list(model):
                model.pop(name)
                journal.ended(name)
        journal.close()
        assert bool(files(directory)) == bool(model)
        assert left(directory) == {name: (key, True) for name, key in model.items()}


def test_nothing_is_made_before_the_first_upload(tmp_path: Path) -> None:
    """A mount that only reads, or writes small files, creates no file."""
    journal = Journal(tmp_path / "state", ADDRESS)
    journal.ended("unknown")
    journal.close()
    assert not (tmp_path / "state").exists()
    assert left(tmp_path / "state") == {}


def test_it_stays_small(tmp_path: Path) -> None:
    """After ten thousand uploads the file has the size of a few thousand."""
    journal = Journal(tmp_path, ADDRESS)
    journal.begun(b"long", "long")
    for number in range(10_000):
        journal.begun(b"key", f"id-{number}")
        journal.ended(f"id-{number}")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 400_000
    assert left(tmp_path) == {"long": (b"long", False)}
    journal.close()


def test_only_the_user_reads_it(tmp_path: Path) -> None:
    """Other users must not see keys."""
    journal = Journal(tmp_path / "state", ADDRESS)
    journal.begun(b"key", "id")
    (path,) = (tmp_path / "state").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    journal.close()


def test_nothing_is_written_through_links(tmp_path: Path) -> None:
    """Neither where a link replaces the directory, nor through one in place of a draft."""
    (tmp_path / "other").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("other")
    journal = Journal(tmp_path / "link", ADDRESS)
    with structlog.testing.capture_logs() as lines:
        journal.begun(b"key", "id")
    assert [line["reason"] for line in lines] == ["it is a symbolic link"]
    assert files(tmp_path / "other") == []
    journal.close()

    victim = tmp_path / "victim"
    victim.write_bytes(b"content")
    journal = Journal(tmp_path, ADDRESS)
    journal._path.with_suffix(pending_journal.DRAFT).symlink_to(victim)
    with structlog.testing.capture_logs() as lines:
        journal.begun(b"key", "id")
    assert [line["directory"] for line in lines] == [str(tmp_path)]
    assert victim.read_bytes() == b"content"
    journal.close()


@pytest.mark.parametrize(("user", "number"), [("root", 1), ("another", 0), ("the owner", 1)])
def test_journals_of_other_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, number: int
) -> None:
    """Only root reads them."""
    journal = Journal(tmp_path, ADDRESS)
    journal.begun(b"key", "id")
    owner = os.geteuid()
    uids = {"root": 0, "another": owner + 1, "the owner": owner}
    monkeypatch.setattr(os, "geteuid", lambda: uids[user])
    assert len(left(tmp_path)) == number
    monkeypatch.undo()
    journal.close()


def test_a_killed_process(tmp_path: Path) -> None:
    """While it lives its uploads are not found; after SIGKILL they are."""
    command = [sys.executable, "-c", WRITER, str(tmp_path), "a", "b", "c"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            assert left(tmp_path) == {"b": (b"key b", False), "c": (b"key c", False)}
            with journals(tmp_path) as found:
                assert [(one.pid, one.address) for one in found] == [(process.pid, ADDRESS)]
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert left(tmp_path) == {"b": (b"key b", True), "c": (b"key c", True)}


def test_striking(tmp_path: Path) -> None:
    """Removed uploads are not found again, and the file is removed with the last one."""
    journal = Journal(tmp_path, ADDRESS)
    for name in "abc":
        journal.begun(name.encode(), name)
    journal.close()
    with journals(tmp_path) as found:
        found[0].strike(["a", "unknown"])
    assert sorted(left(tmp_path)) == ["b", "c"]
    with journals(tmp_path) as found:
        found[0].strike(["b", "c"])
    assert files(tmp_path) == []


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut(tmp_path: Path, cut: int) -> None:
    """A full disk cuts the last line: earlier lines count, and later ones can be added."""
    journal = Journal(tmp_path, ADDRESS)
    for name in ("first", "second", "third"):
        journal.begun(b"a long enough key", name)
    journal.close()
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - cut)
    assert sorted(left(tmp_path)) in (["first", "second"], ["first", "second", "third"])
    with journals(tmp_path) as found:
        found[0].strike(["first"])
    assert "second" in left(tmp_path)
    assert "first" not in left(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b'{"begun": 1, "key": "k", "ns": 1}',
        b'{"begun": "x"}',
        b"\xff\xfe",
        b'{"begun": "x", "key": "\\ud800", "ns": 1}',
        b'{"ended": ["id"]}',
        b"[" * 9000,
    ],
    ids=lambda line: line[:40].decode("latin-1"),
)
def test_lines_that_make_no_sense(tmp_path: Path, line: bytes) -> None:
    """Invalid lines are skipped."""
    head = {"bucket": "bucket", "endpoint": "", "pid": 1}
    good = {"begun": "id", "key": "k", "ns": 1}
    text = b"\n".join([json.dumps(head).encode(), line, json.dumps(good).encode(), b""])
    (tmp_path / "x.journal").write_bytes(text)
    assert left(tmp_path) == {"id": (b"k", True)}


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """Writing continues, with one warning."""
    (tmp_path / "state").write_text("in the way")
    with structlog.testing.capture_logs() as lines:
        journal = Journal(tmp_path / "state", ADDRESS)
        for number in range(5):
            journal.begun(b"key", f"id-{number}")
            journal.ended(f"id-{number}")
        journal.close()
    assert [line["log_level"] for line in lines] == ["warning"]


@pytest.mark.parametrize("call", ["write", "flock", "rename"])
def test_a_disk_that_is_full(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The uploads of a truncated journal do not count as a dead mount's."""
    journal = Journal(tmp_path, ADDRESS)
    if call == "write":
        journal.begun(b"before", "before")

    def fails(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with structlog.testing.capture_logs() as lines, monkeypatch.context() as patch:
        patch.setattr(fcntl if call == "flock" else os, call, fails)
        journal.begun(b"key", "id")
        journal.begun(b"key", "id 2")
    assert [line["log_level"] for line in lines] == ["warning"]
    expected = {"before": (b"before", False)} if call == "write" else {}
    assert left(tmp_path) == expected
    assert all(name.endswith(".journal") for name in files(tmp_path))
    journal.close()


def test_others_look_while_it_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A living mount never counts as dead."""
    monkeypatch.setattr(pending_journal, "MAX_STRUCK", 0)
    journal = Journal(tmp_path, ADDRESS)
    journal.begun(b"always", "always")
    stopping = threading.Event()

    def write() -> None:
        while not stopping.is_set():
            journal.begun(b"key", "id")
            journal.ended("id")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            found = left(tmp_path)
            assert found["always"] == (b"always", False)
            assert not any(dead for _, dead in found.values())
    finally:
        stopping.set()
        writer.join()
        journal.close()


def test_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_STATE_HOME, if it is absolute; for root /var/lib; otherwise the home's."""
    assert default_directory({"XDG_STATE_HOME": "/x"}) == Path("/x/mount-s3")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_directory({"XDG_STATE_HOME": "x"}) == Path("/var/lib/mount-s3")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/u")
    assert default_directory({}) == Path("/home/u/.local/state/mount-s3")


def test_addresses() -> None:
    """A slash at the end of an endpoint makes no difference."""
    assert BucketAddress.of(BucketConfig("bucket")) == BucketAddress("bucket", "")
    url = "http://127.0.0.1:9000"
    assert BucketAddress.of(BucketConfig("bucket", endpoint_url=f"{url}/")) == BucketAddress(
        "bucket", url
    )


def test_old_drafts_go(tmp_path: Path) -> None:
    """The draft of a process that died between two system calls is removed a day later."""
    (tmp_path / "old.new").touch()
    (tmp_path / "young.new").touch()
    os.utime(tmp_path / "old.new", (0, 0))
    left(tmp_path)
    assert files(tmp_path) == ["young.new"]
    with suppress(FileNotFoundError):
        os.unlink(tmp_path / "young.new")
