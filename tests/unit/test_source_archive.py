"""The source archive: its files, its metadata, and the message if it cannot be built."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.packages import CLONES_ONLY, ROOT, source_archive, sources

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of this checkout."""
    return source_archive(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source archive."""
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xzf", archive, "-C", folder], check=True)
    (found,) = folder.iterdir()
    return found


def setup(source: Path, *arguments: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py in `source`, with `changes` to the environment."""
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *arguments],
        cwd=source,
        env=os.environ | changes,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_complete(archive: Path) -> None:
    """The archive has all files of the project, and no generated files except its metadata."""
    with tarfile.open(archive) as tar:
        names = {m.name.partition("/")[2] for m in tar.getmembers() if m.isfile()}
    generated = {n for n in names if n.startswith("mount_s3.egg-info/")}
    assert names - generated - {"PKG-INFO", "setup.cfg"} == sources() - CLONES_ONLY


def test_metadata_without_compiler(unpacked: Path, tmp_path: Path) -> None:
    """The metadata can be made without a compiler and libfuse's headers."""
    nothing = {"CC": "/nonexistent/cc", "PATH": "/nonexistent", "PKG_CONFIG_LIBDIR": "/nonexistent"}
    done = setup(unpacked, "dist_info", "--output-dir", tmp_path, **nothing)
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.glob("mount_s3-*.dist-info/METADATA")
    metadata = Parser().parsestr(found.read_text())
    # The dependency groups of developers are not extras.
    assert metadata.get_all("Provides-Extra") == ["otlp", "prometheus"]
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert metadata.get_all("Project-URL")


def lacking(what: str, folder: Path) -> str:
    """Return a compiler, as a command, that lacks `what`."""
    if what == "compiler":
        return "/nonexistent/cc"
    if what == "libc":
        return "cc -nostdinc"
    # Python.h is found only by -I.
    program = folder / "cc"
    program.write_text(
        '#!/bin/sh\nfor each; do\n shift\n case $each in -I*) ;; *) set -- "$@" "$each" ;; esac\n'
        'done\nexec cc "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


PYTHON = f"python{sysconfig.get_python_version()}"


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("compiler", "a working C compiler"),
        ("libc", "a working C compiler"),
        ("Python.h", f"{PYTHON}'s headers"),
    ],
)
def test_missing(what: str, named: str, unpacked: Path, tmp_path: Path) -> None:
    """The build ends with the name of the missing part, and all packages to install."""
    build = ("build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path)
    done = setup(unpacked, *build, CC=lacking(what, tmp_path))
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-5:] == [
        f"mount-s3 cannot be built: this machine lacks {named}",
        "Install what it and llfuse are built with, then try again:",
        f"  Debian, Ubuntu:        apt install gcc libc6-dev {PYTHON}-dev pkg-config libfuse-dev",
        f"  Amazon Linux, Fedora:  dnf install gcc {PYTHON}-devel pkgconf-pkg-config fuse-devel",
        "Or install a package or wheels, without a compiler: docs/install.md",
    ]


def test_pip_shows_it(archive: Path, tmp_path: Path) -> None:
    """pip shows the message without a traceback."""
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "wheel"]
    command += ["--no-index", "--no-deps", "--no-cache-dir", "--wheel-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--no-build-isolation", archive],
        env=os.environ | {"CC": "/nonexistent/cc"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stdout.partition("mount-s3 cannot be built: this machine lacks")[2]
    assert "apt install gcc libc6-dev" in said
    assert len(said.splitlines()) < 25
    assert "Traceback" not in done.stdout


def test_lint_installs_nothing(tmp_path: Path) -> None:
    """`make lint` without .venv says what to do, and does nothing."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "mountpoint").mkdir()
    command = ["make", "--no-print-directory", "-C", str(tmp_path), "lint"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "ruff and mypy are not installed: run make setup\n"
    assert {path.name for path in tmp_path.iterdir()} == {"Makefile", "mountpoint"}
