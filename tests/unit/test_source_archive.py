"""The source archive: what is in it, and what is said where it cannot be built."""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from tests.packages import CLONES_ONLY, source_archive, sources

BUILD_TOOLS = ("setuptools", "setuptools-*.dist-info", "_distutils_hack", "Cython", "cython.py")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of this checkout."""
    return source_archive(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the source archive unpacks to."""
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xzf", archive, "-C", folder], check=True)
    (found,) = folder.iterdir()
    return found


@pytest.fixture
def isolated(tmp_path: Path) -> dict[str, str]:
    """The environment of an isolated build: the build tools, and nothing of what is installed."""
    links = tmp_path / "build-tools"
    links.mkdir()
    for pattern in BUILD_TOOLS:
        found = next(path for here in site.getsitepackages() for path in Path(here).glob(pattern))
        (links / found.name).symlink_to(found)
    venv.create(tmp_path / "venv", symlinks=True)
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(links),
        "CC": shutil.which("cc") or "cc",
    }


def metadata(
    source: Path, folder: Path, environment: dict[str, str], *, python: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Make the metadata of this package in `folder`, as pip begins an installation."""
    program = python or folder / "venv" / "bin" / "python"
    return subprocess.run(
        [program, "setup.py", "-q", "dist_info", "--output-dir", folder],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_complete(archive: Path) -> None:
    """It has all files of the project, and nothing that was generated but its metadata."""
    with tarfile.open(archive) as tar:
        names = {m.name.partition("/")[2] for m in tar.getmembers() if m.isfile()}
    generated = {n for n in names if n.startswith("mount_s3.egg-info/")}
    assert names - generated - {"PKG-INFO", "setup.cfg"} == sources() - CLONES_ONLY


def test_nothing_is_missing(unpacked: Path, isolated: dict[str, str], tmp_path: Path) -> None:
    """Where all is there, the metadata are made."""
    done = metadata(unpacked, tmp_path, isolated)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert list(tmp_path.glob("mount_s3-*.dist-info/METADATA"))


MISSING = {
    "compiler": (
        {"CC": "/nonexistent/cc"},
        ["a C compiler that works"],
        "gcc libc6-dev",
        "gcc",
    ),
    "libfuse": (
        {"PKG_CONFIG_LIBDIR": "/nonexistent"},
        ["libfuse 2.9 with its headers (fuse.h), for llfuse"],
        "libfuse-dev",
        "fuse-devel",
    ),
    # Then nobody can tell whether libfuse is there.
    "pkg-config": (
        {"PATH": "/nonexistent"},
        [
            "pkg-config, by which llfuse finds libfuse",
            "libfuse 2.9 with its headers (fuse.h), for llfuse",
        ],
        "pkg-config libfuse-dev",
        "pkgconf-pkg-config fuse-devel",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_missing(what: str, unpacked: Path, isolated: dict[str, str], tmp_path: Path) -> None:
    """What is missing is named, no more and no less, with its packages."""
    changes, lacks, debian, fedora = MISSING[what]
    done = metadata(unpacked, tmp_path, isolated | changes)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines() == [
        "mount-s3 cannot be built, because this machine lacks",
        *(f"  - {one}" for one in lacks),
        "Install them, then try again:",
        f"  Debian, Ubuntu:        apt install {debian}",
        f"  Amazon Linux, Fedora:  dnf install {fedora}",
        "Or install it from wheels, which need none of them: docs/install.md",
    ]


def test_no_python_headers(unpacked: Path, isolated: dict[str, str], tmp_path: Path) -> None:
    """The package of the headers has this interpreter's version in its name."""
    # An interpreter whose home has no `include`.
    home = tmp_path / "home"
    home.mkdir()
    for name in ("lib", "lib64"):
        if (Path(sys.base_prefix) / name).exists():
            (home / name).symlink_to(Path(sys.base_prefix) / name)
    base = Path(sysconfig.get_config_var("BINDIR")) / f"python{sysconfig.get_python_version()}"
    done = metadata(unpacked, tmp_path, isolated | {"PYTHONHOME": str(home)}, python=base)
    assert done.returncode != 0
    version = sysconfig.get_python_version()
    assert f"\n  - Python.h, the headers of python{version}\n" in done.stderr
    assert f"apt install python{version}-dev" in done.stderr
    assert f"dnf install python{version}-devel" in done.stderr


def test_llfuse_is_installed(unpacked: Path, isolated: dict[str, str], tmp_path: Path) -> None:
    """Where llfuse needs no build, nothing is missing for it."""
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    information = packages / "llfuse-1.5.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llfuse\nVersion: 1.5.2\n")
    done = metadata(unpacked, tmp_path, isolated | {"PKG_CONFIG_LIBDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_pip_shows_it(archive: Path, isolated: dict[str, str], tmp_path: Path) -> None:
    """What is missing is what pip ends with; pkg-config's and llfuse's words do not come."""
    # The pip of this environment, working for the empty one.
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check"]
    command += ["--python", str(tmp_path / "venv"), "install", "--no-index", "--no-cache-dir"]
    done = subprocess.run(
        [*command, "--no-build-isolation", archive],
        env=isolated | {"CC": "/nonexistent/cc", "PKG_CONFIG_LIBDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    output = done.stdout + done.stderr
    said = output.partition("mount-s3 cannot be built, because this machine lacks")[2]
    assert "apt install gcc libc6-dev libfuse-dev" in said
    assert len(said.splitlines()) < 25
    assert "Package fuse was not found" not in output
