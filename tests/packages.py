"""The source archive of this checkout, built as pip builds it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Files that only a clone needs.
CLONES_ONLY = {".ci/run", ".gitignore", ".pre-commit-config.yaml"}


def sources() -> set[str]:
    """Return the paths of all files of the project; skip the test if git cannot list them."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone: only git knows which files belong to it")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


def source_archive(folder: Path) -> Path:
    """Return a new source archive of exactly the files of the project."""
    checkout = folder / "checkout"
    for name in sources():
        copy = checkout / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, folder],
        cwd=checkout,
        capture_output=True,
        check=True,
    )
    (archive,) = folder.glob("mount_s3-*.tar.gz")
    return archive
