"""Which files are warmed: paths, patterns, lists and shares."""

import io
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from mountpoint.ctl.mounts import Mount
from mountpoint.ctl.warm.files import Finder, Share, expanded, listed, mount_of
from mountpoint.errors import MountError

FILES = ["a", "b/c", "b/d/e", "b/d/f", "b/.hidden", "x[1]", "z"]


def mount_at(directory: Path, cache: str | None = "/cache") -> Mount:
    """Return a mount that answers, in a directory of files."""
    status: dict[str, Any] = {"directory": str(directory), "cache_directory": cache}
    return Mount(directory / "socket", status)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory of files, with a link that leads out of it."""
    root = (tmp_path / "mnt").resolve()
    for path in FILES:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    (root / "link").symlink_to(tmp_path)
    (root / "empty").mkdir()
    return root


def find(root: Path, *paths: str, share: str = "1/1") -> tuple[list[str], dict[str, str]]:
    """Return the files that patterns name, and failures by path."""
    failures: dict[str, str] = {}
    found = [mount_at(root), mount_at(root.parent / "other")]
    names = [each for path in paths for each in expanded(f"{root}/{path}", failures.__setitem__)]
    finder = Finder(found[0], found, failures.__setitem__)
    return list(finder.files(names, Share.parse(share))), failures


@pytest.mark.parametrize(
    ("paths", "files"),
    [
        (["a"], ["a"]),
        ([""], FILES),
        (["b"], ["b/c", "b/d/e", "b/d/f", "b/.hidden"]),
        (["b/d", "b", "b/c", "b/c", "b/d/e"], ["b/c", "b/d/e", "b/d/f", "b/.hidden"]),
        (["b/c", "b/d/f", "b/c"], ["b/c", "b/d/f"]),
        (["*"], FILES),
        (["b/*"], ["b/c", "b/d/e", "b/d/f"]),
        (["**/[ef]"], ["b/d/e", "b/d/f"]),
        (["**", "z"], FILES),
        (["x[1]"], ["x[1]"]),  # it exists
        (["empty"], []),
    ],
)
def test_files(root: Path, paths: list[str], files: list[str]) -> None:
    """Directories stand for the files below them; each file is found once."""
    found, failures = find(root, *paths)
    assert sorted(found) == sorted(files)
    assert not [path for path in failures if not path.endswith("/link")]


def test_failures(root: Path) -> None:
    """What is not there, or elsewhere, is named; the rest is found."""
    (root.parent / "other").mkdir()
    found, failures = find(root, "no*", "../other", "../nowhere", "a")
    assert found == ["a"]
    assert failures == {
        f"{root}/no*": "nothing matches it",
        f"{root}/../other": f"it is in another mount, '{root.parent}/other'",
        f"{root}/../nowhere": f"you have no mount at '{root}/../nowhere'",
    }


def test_a_directory_that_cannot_be_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of other directories are found."""

    def scandir(path: str) -> Any:
        if path.endswith("/d"):
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    real_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    found, failures = find(root, "b")
    assert sorted(found) == ["b/.hidden", "b/c"]
    assert failures == {str(root / "b/d"): "Permission denied"}


def test_shares_are_disjoint_and_complete(root: Path) -> None:
    """Each file is in one share."""
    for shares in (1, 2, 5):
        found = [find(root, "", share=f"{n}/{shares}")[0] for n in range(1, shares + 1)]
        assert sorted(itertools.chain(*found)) == sorted(FILES)


def test_shares_do_not_change() -> None:
    """A path has the same share on every machine and in every version; shares are alike."""
    share = Share(2, 3)
    assert [n for n in range(20) if share.has(f"train/{n:05}.jpg")] == STABLE
    sizes = [sum(Share(k, 4).has(f"f{n}") for n in range(4000)) for k in range(1, 5)]
    assert min(sizes) > 900
    assert share.has("\udcff") in (True, False)


STABLE = [4, 5, 16, 19]


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2", " 1/2"])
def test_wrong_shares(text: str) -> None:
    """Other texts are no shares."""
    with pytest.raises(ValueError, match="is not a share"):
        Share.parse(text)


def test_lists() -> None:
    """One path in a line, or ended by NUL; bytes that are not UTF-8."""
    assert list(listed(io.BytesIO(b"a\n\nb c\nd\xff"), null=False)) == ["a", "b c", "d\udcff"]
    assert list(listed(io.BytesIO(b"a\nb\0c\0"), null=True)) == ["a\nb", "c"]


def test_the_mount(root: Path, tmp_path: Path) -> None:
    """The mount of the first path that has one; of a pattern it is that of its beginning."""
    found = [mount_at(root), mount_at(tmp_path / "other", None)]
    assert mount_of([str(tmp_path), f"{root}/**/x", str(root)], found) is found[0]
    assert mount_of([f"{root}/b*"], found) is found[0]
    with pytest.raises(MountError, match="you have no mount at"):
        mount_of([str(tmp_path)], found)
    with pytest.raises(MountError, match="has no data cache\nmount the bucket with --cache"):
        mount_of([str(tmp_path / "other")], found)
    found[1].status["cache_bucket"] = "a-bucket"
    assert mount_of([str(tmp_path / "other")], found) is found[1]
    with pytest.raises(MountError, match="there are no paths"):
        mount_of([], found)
