"""`mount-s3ctl warm` on real mounts: what it fetches, what it leaves, and what it says."""

import json
import mmap
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy, on_data
from tests.mount.caches import blocks
from tests.mount.mounting import Mount, eventually, mounted
from tests.mount.test_ctl import CTL, ctl, documented, done, stats

pytestmark = pytest.mark.mount

MIB = 1 << 20
LARGE = {"large/a": 20 * MIB + 5, "large/b": 9 * MIB, "large/c": MIB + 1}
SMALL = {f"small/{number % 7}/{number:03}": 1 + number * 997 for number in range(70)}
SIZES = {**LARGE, **SMALL, "top": 70_000}
BLOCKS = sum(-(-size // MIB) for size in SIZES.values())


@pytest.fixture(scope="module")
def tree(store: Store) -> None:
    """Objects below `warm/`, one of them empty."""
    body = random.Random(23).randbytes(max(SIZES.values()))
    for key, size in SIZES.items():
        store.put(f"warm/{key}", body[:size])
    store.put("warm/empty", b"")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A directory for a cache."""
    return tmp_path / "cache"


@pytest.fixture
def mount(store: Store, folder: Path, cache: Path, tree: None) -> Iterator[Mount]:
    """The tree, mounted with an empty cache."""
    with mounted(store, folder, "--prefix", "warm/", "--debug", "--cache", str(cache)) as it:
        yield it


def requests(mount: Mount) -> dict[str, int]:
    """Return how many requests for objects the mount has sent."""
    found = stats(mount)["meters"]["requests"]
    return {
        name: found[name]["us"]["count"] if name in found else 0
        for name in ("GetObject", "HeadObject")
    }


def warm(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """Run the command; return its result."""
    result = ctl("warm", "--json", *arguments)
    assert result.returncode == code, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def late(exchange: Exchange) -> None:
    """Send the answer after half a second."""
    exchange.delay_s = 0.5


def test_a_tree(mount: Mount, cache: Path) -> None:
    """Everything is fetched once; then programs, and another warming, fetch nothing."""
    planned = warm("--dry-run", mount.path)
    assert set(planned) == documented("warm")
    assert (planned["files"], planned["size_bytes"]) == (len(SIZES) + 1, sum(SIZES.values()))
    assert (planned["to_fetch_bytes"], planned["cached_bytes"]) == (sum(SIZES.values()), 0)
    assert requests(mount) == {"GetObject": 0, "HeadObject": 0}
    assert blocks(cache) == []

    first = warm(mount.path)
    assert (first["done"], first["failed"]) == (len(SIZES) + 1, 0)
    assert first["fetched_bytes"] >= sum(SIZES.values())
    assert len(blocks(cache)) == BLOCKS
    before = requests(mount)
    assert planned["least_requests"] <= sum(before.values()) <= planned["most_requests"]

    again = warm(mount.path)
    assert (again["fetched_bytes"], again["cached_bytes"]) == (0, sum(SIZES.values()))
    assert warm("--dry-run", mount.path)["most_requests"] == 0
    for key, size in SIZES.items():
        assert len((mount.path / key).read_bytes()) == size
    assert requests(mount)["GetObject"] == before["GetObject"]


def test_text(mount: Mount, cache: Path) -> None:
    """A dry run and a run each end with a line of numbers."""
    said = done("warm", "--dry-run", mount.path / "large/b").strip()
    assert said == ("1 file of 9.4 MB: 0 B in the cache, 9.4 MB to fetch in 3 to 14 requests")
    result = ctl("warm", mount.path / "large/b")
    assert result.stdout.startswith("1 file in the cache, 9.4 MB fetched, 0 B were there; ")
    assert (len(blocks(cache)), result.returncode) == (9, 0)
    assert done("warm", mount.path / "large/b").startswith(
        "1 file in the cache, 0 B fetched, 9.4 MB were there; "
    )


def test_the_cache_is_shown(mount: Mount, cache: Path) -> None:
    """The blocks by bucket, and what the mount has read from them; then they are removed."""
    warm(mount.path / "large/b")
    assert len((mount.path / "large/b").read_bytes()) == 9 * MIB
    found = json.loads(done("cache", mount.path, "--json"))
    assert set(found) == documented("cache")
    assert (found["blocks"], found["buckets"][0]["blocks"]) == (9, 9)
    (used,) = found["mounts"]
    assert used["directory"] == str(mount.path)
    assert used["hit_rate"] == pytest.approx(0.5, abs=0.1)
    assert "9 blocks of 9.5 MB checked: all are right\n" in done("cache", cache, "--verify")
    assert "removed: 9 blocks" in done("cache", cache, "--clear", "--yes")
    assert warm("--dry-run", mount.path / "large/b")["to_fetch_bytes"] == 9 * MIB


def test_only_what_is_missing(mount: Mount, cache: Path) -> None:
    """Single missing blocks are fetched, and no others; also if the kernel has their pages."""
    path = mount.path / "large/a"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert len(pages[:]) == LARGE["large/a"]
        warm(path)
        gone = blocks(cache)[::4]
        lost_bytes = sum(min(each.stat().st_size, MIB) for each in gone)
        for each in gone:
            each.unlink()
        found = warm(path)
    assert found["failed"] == 0
    assert 0 < found["fetched_bytes"] <= lost_bytes
    assert warm("--dry-run", path)["to_fetch_bytes"] == 0


def test_patterns_and_lists(mount: Mount, tmp_path: Path) -> None:
    """Patterns are expanded, lists are read, and what is named twice is warmed once."""
    assert warm("--dry-run", f"{mount.path}/small/[01]/*")["files"] == 20
    assert warm("--dry-run", f"{mount.path}/**/00?")["files"] == 10
    assert warm("--dry-run", f"{mount.path}/**", mount.path / "top")["files"] == len(SIZES) + 1
    paths = [mount.path / key for key in list(SMALL)[:5]]
    names = tmp_path / "names"
    names.write_text("\n".join(map(str, [*paths, *paths])))
    assert warm("--dry-run", "--from-file", names, paths[0])["files"] == 5
    names.write_text("\0".join(map(str, paths)) + "\0")
    assert warm("--dry-run", "--from-file", names, "--null")["files"] == 5


def test_shares_are_all(mount: Mount, cache: Path) -> None:
    """The shares of several machines are different files, and together all."""
    one, two = (warm(mount.path, "--share", f"{number}/2") for number in (1, 2))
    assert min(one["files"], two["files"]) > len(SIZES) // 4
    assert one["files"] + two["files"] == len(SIZES) + 1
    assert one["size_bytes"] + two["size_bytes"] == sum(SIZES.values())
    assert len(blocks(cache)) == BLOCKS


def test_ctrl_c(store: Store, folder: Path, cache: Path, tree: None) -> None:
    """An interrupted command says what it has done; a second one does the rest."""
    options = ("--prefix", "warm/", "--debug", "--cache", str(cache))
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(on_data(late))
        with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
            program = subprocess.Popen(
                [CTL, "warm", mount.path, "--jobs", "2"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            eventually(lambda: len(blocks(cache)) >= 3)
            program.send_signal(signal.SIGINT)
            said, _ = program.communicate(timeout=20)
            assert program.returncode == 130
            assert "not finished" in said
            proxy.faults.clear()
            found = warm(mount.path)
            assert found["cached_bytes"] >= 3
            assert found["fetched_bytes"] < sum(SIZES.values())
            assert len(blocks(cache)) == BLOCKS


def test_failures(store: Store, mount: Mount, tmp_path: Path) -> None:
    """Each failure is a line with a path and a reason, the first ones; the others go on."""
    other = tmp_path / "other"
    other.mkdir()
    with mounted(store, other, "--prefix", "warm/", "--cache", str(other / "cache")) as it:
        result = ctl(
            "warm", mount.path / "top", mount.path / "absent", f"{mount.path}/x*", it.path / "top",
            tmp_path,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stdout.startswith("1 file in the cache, 70 kB fetched, 0 B were there, 4 failed;")
    lines = result.stderr.splitlines()
    assert f"{mount.path}/x*: nothing matches it" in lines
    assert f"{it.path}/top: it is in another mount, '{it.path}'" in lines
    assert f"{mount.path}/absent: it does not exist" in lines
    assert f"{tmp_path}: you have no mount at '{tmp_path}'" in lines

    names = tmp_path / "names"
    names.write_text("".join(f"{mount.path}/absent{number}\n" for number in range(30)))
    result = ctl("warm", "--from-file", names)
    assert len([line for line in result.stderr.splitlines() if "does not exist" in line]) == 20
    assert result.stderr.endswith("10 more failed\n")
    found = warm("--from-file", names, code=1)
    assert found["failures"][0] == {"path": f"{mount.path}/absent0", "why": "it does not exist"}


def test_a_cache_that_is_too_small(store: Store, folder: Path, cache: Path, tree: None) -> None:
    """Files that do not fit are failures, not endless work."""
    options = ("--prefix", "warm/", "--debug", "--cache", str(cache), "--max-cache-size", "16")
    with mounted(store, folder, *options) as mount:
        found = warm(mount.path / "large/a", code=1)
    assert found["failed"] == 1
    assert "the cache did not keep" in found["failures"][0]["why"]


def test_mounts_that_cannot_be_warmed(store: Store, folder: Path, tmp_path: Path) -> None:
    """Without a cache, or outside of a mount, a message says what to do."""
    store.put("warm/top", b"x")
    with mounted(store, folder, "--prefix", "warm/") as mount:
        result = ctl("warm", mount.path)
        assert result.returncode == 1
        assert f"the mount at '{mount.path}' has no data cache" in result.stderr
        assert "--cache" in result.stderr
    result = ctl("warm", tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"you have no mount at '{tmp_path}'" in result.stderr


def test_a_mount_that_ends(store: Store, folder: Path, cache: Path, tree: None) -> None:
    """The command ends with the mount."""
    options = ("--prefix", "warm/", "--debug", "--cache", str(cache))
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(on_data(late))
        with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
            program = subprocess.Popen(
                [CTL, "warm", mount.path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            eventually(lambda: len(blocks(cache)) >= 1)
            os.kill(mount.pid, signal.SIGKILL)
            program.communicate(timeout=20)
            assert program.returncode == 1
