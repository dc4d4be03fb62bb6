"""`mount-s3ctl cache`: numbers, checks and removal of the blocks in a directory."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mountpoint.cache.directory import NAME, CacheDirectory
from mountpoint.ctl import mounts
from mountpoint.ctl.cache import command
from mountpoint.ctl.cache.checking import Check
from mountpoint.ctl.cache.hits import Hits
from mountpoint.ctl.main import main
from mountpoint.ctl.mounts import Mount
from tests.unit.cache.objects import BUCKET, ENDPOINT, Cached, content

MIB = 1 << 20


@pytest.fixture
def directory(tmp_path: Path) -> CacheDirectory:
    """An empty cache."""
    return CacheDirectory.open(str(tmp_path / "cache"))


class FakeMount(Mount):
    """A mount that uses a cache."""

    def ask(self, command: str, /, **_: Any) -> dict[str, Any]:
        """Return its counters."""
        assert command == "stats"
        return {"counters": {"cache_bytes_read": 3_000_000, "bytes_fetched": 1_000_000}}


@pytest.fixture(autouse=True)
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Mount]:
    """The running mounts: at first there are none."""
    running: list[Mount] = []
    monkeypatch.setattr(mounts, "answering", lambda environ: running)
    return running


def mount_at(path: Path, cache: str | None) -> Mount:
    """Return a mount with a cache."""
    path.mkdir()
    status = {"directory": str(path.resolve()), "bucket": "a-bucket", "prefix": ""}
    return FakeMount(path, status | {"cache_directory": cache, "cache_limit_bytes": 16 * MIB})


def run(*arguments: str, text: str = "") -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["cache", *arguments], input=text)


def of(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Run the command; return its result."""
    result = run("--json", *arguments)
    assert result.exit_code == code, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_numbers(directory: CacheDirectory, tmp_path: Path, running: list[Mount]) -> None:
    """Blocks, bytes and ages, by bucket and in all; and what running mounts have read."""
    one = Cached.of(directory, content(2 * MIB + 5))
    one.write()
    os.utime(one.path(1), (time.time() - 7200, time.time()))
    running += [mount_at(tmp_path / "mnt", directory.path), mount_at(tmp_path / "other", "/x")]
    found = of(directory.path)
    assert found["blocks"] == 3
    assert 2 * MIB < found["size_bytes"] < 2.1 * MIB
    assert found["oldest_use_age_s"] == pytest.approx(7200, abs=60)
    assert found["newest_use_age_s"] < 60
    assert 0 < found["free_bytes"] < found["disk_bytes"]
    (bucket,) = found["buckets"]
    assert (bucket["bucket"], bucket["endpoint"], bucket["blocks"]) == (BUCKET, ENDPOINT, 3)
    (mount,) = found["mounts"]
    assert (mount["directory"], mount["hit_rate"]) == (str(tmp_path.resolve() / "mnt"), 0.75)
    assert of(str(tmp_path / "mnt"))["blocks"] == 3

    lines = run(directory.path).stdout.splitlines()
    assert lines[0].startswith(f"{directory.path}: 3 blocks, 2.1 MB; ")
    assert lines[2].split() == ["bucket", "blocks", "bytes", "oldest", "use", "newest", "use"]
    assert lines[3].split()[:6] == [BUCKET, "3", "2.1", "MB", "2", "h"]
    assert lines[-1] == (
        f"a-bucket at {tmp_path.resolve()}/mnt: 75.0 % of 4 MB came from the cache, limit 17 MB"
    )


def test_looks_are_no_use(directory: CacheDirectory) -> None:
    """The blocks are as old as before, whatever the command has read."""
    one = Cached.of(directory, content(2 * MIB))
    one.write()
    for index in range(2):
        os.utime(one.path(index), (time.time() - 7200, time.time()))
    before = [os.stat(one.path(index)).st_atime_ns for index in range(2)]
    of(directory.path)
    of("--verify", directory.path)
    assert [os.stat(one.path(index)).st_atime_ns for index in range(2)] == before


def test_an_empty_cache(directory: CacheDirectory) -> None:
    """There are no buckets and no ages."""
    found = of(directory.path)
    assert (found["blocks"], found["oldest_use_age_s"], found["buckets"]) == (0, None, [])
    assert len(run(directory.path).stdout.splitlines()) == 1


def test_no_cache(tmp_path: Path, running: list[Mount]) -> None:
    """Nothing is created where there is no cache."""
    result = run(str(tmp_path))
    assert result.exit_code == 1
    assert f"there is no data cache in '{tmp_path}'" in result.stderr
    assert not (tmp_path / NAME).exists()
    running.append(mount_at(tmp_path / "mnt", None))
    assert "has no data cache" in run(str(tmp_path / "mnt")).stderr


def test_verify(directory: CacheDirectory) -> None:
    """Bad blocks are named and removed; the exit code says whether there were any."""
    one = Cached.of(directory, content(30 * MIB))
    one.write()
    assert of("--verify", directory.path)["bad"] == []
    result = run("--verify", directory.path)
    assert result.stdout == "30 blocks of 32 MB checked: all are right\n"
    assert result.stderr.startswith("Checking the cache: ")

    for index in range(3):
        path = Path(one.path(index))
        path.write_bytes(path.read_bytes()[:5000])
    result = run("--verify", directory.path)
    assert (result.exit_code, "3 bad blocks removed" in result.stdout) == (1, True)
    assert sum("it has no trailer" in line for line in result.stderr.splitlines()) == 3
    for index in range(3, 30):
        path = Path(one.path(index))
        path.write_bytes(path.read_bytes()[1:])
    result = run("--verify", directory.path)
    assert sum(": it has" in line for line in result.stderr.splitlines()) == command.MAX_SHOWN
    assert result.stderr.endswith("7 more are bad\n")
    assert of(directory.path)["blocks"] == 0

    one.write()
    Path(one.path(0)).write_bytes(b"")
    found = of("--verify", directory.path, code=1)
    assert (found["blocks"], found["removed"]) == (30, 1)
    assert found["bad"][0]["why"] == "it has no trailer"
    assert of("--verify", directory.path)["blocks"] == 29


def test_a_block_that_cannot_be_read(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block on a damaged sector is a bad one; a directory that fails is an error."""
    Cached.of(directory, content(MIB)).write()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(CacheDirectory, "files", fail)
        result = run("--verify", directory.path)
        assert (result.exit_code, "cannot be used: Input/output error" in result.stderr) == (
            1,
            True,
        )
    monkeypatch.setattr(CacheDirectory, "check", fail)
    found = of("--verify", directory.path, code=1)
    assert found["bad"][0]["why"] == "it cannot be read: Input/output error"


def test_clear(directory: CacheDirectory) -> None:
    """All blocks go, after a confirmation."""
    Cached.of(directory, content(3 * MIB)).write()
    for text, why in [("", "standard input is no terminal"), ("n\n", "the answer was not yes")]:
        result = run("--clear", directory.path, text=text)
        assert result.exit_code == 1
        assert f"nothing was removed: {why}" in result.stderr
        assert of(directory.path)["blocks"] == 3
    assert "removed: 3 blocks of 3.2 MB\n" in run("--clear", directory.path, text="y\n").stdout
    assert of("--clear", "--yes", directory.path)["removed"] == 0
    assert of(directory.path)["blocks"] == 0


def test_misuse(directory: CacheDirectory) -> None:
    """--verify and --clear are not combined."""
    result = run("--verify", "--clear", directory.path)
    assert (result.exit_code, "exclude each other" in result.stderr) == (2, True)


def test_figures() -> None:
    """The progress of a check, also if blocks are added meanwhile."""
    check = Check(10_000_000, began_s=time.monotonic() - 2)
    check.size_bytes = 5_000_000
    assert check.figures() == "5 MB of 10 MB, 2.5 MB/s, 2 s left"
    assert check.share == 0.5
    check.size_bytes = 11_000_000
    assert check.share == 0.99
    assert check.figures().endswith("0 s left")
    assert Check(0).share == 0.99


def test_mounts_that_have_read_nothing() -> None:
    """Their share is unknown."""
    hits = Hits("b at /mnt", "/mnt", None, 0, 0)
    assert (hits.share, hits.line()) == (None, "b at /mnt: nothing read yet, no limit")
