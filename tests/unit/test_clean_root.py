"""Roots of distributions, and wheels for them: refusals, and the choice of the mirror."""

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packages import ROOT

pytestmark = pytest.mark.slow

CLEAN_ROOT = ROOT / "tools" / "clean-root"
BUILD_WHEELS = ROOT / "packaging" / "build-wheels"

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="without root the command fails before")
debootstrap = pytest.mark.skipif(
    shutil.which("debootstrap") is None or shutil.which("apt-get") is None,
    reason="needs debootstrap and apt-get",
)


def run(*command: str | Path, **environment: str) -> tuple[int, str]:
    """Return the exit code and the output of a command."""
    done = subprocess.run(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture
def debian(tmp_path: Path) -> str:
    """An apt configuration whose only sources are mirrors of Debian."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    source = ""
    for site, suite in (("security", "trixie-security"), ("mirror", "trixie")):
        release = tmp_path / site / "dists" / suite
        packages = release / "main" / f"binary-{machine}" / "Packages"
        packages.parent.mkdir(parents=True)
        packages.write_text("Package: nothing\nVersion: 1\nArchitecture: all\n")
        (release / "Release").write_text(
            f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: trixie\n"
            "Date: Sat, 09 Aug 2025 09:30:41 UTC\n"
            f"Architectures: {machine}\nComponents: main\n"
            f"SHA256:\n {hashlib.sha256(packages.read_bytes()).hexdigest()} "
            f"{packages.stat().st_size} {packages.relative_to(release)}\n"
        )
        source += f"deb [trusted=yes] file:{tmp_path / site} {suite} main\n"
    (tmp_path / "sources.list").write_text(source)
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (tmp_path / name).mkdir(parents=True)
    configuration = tmp_path / "apt.conf"
    configuration.write_text(
        f'Dir::State::lists "{tmp_path}/lists";\nDir::Cache "{tmp_path}/cache";\n'
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\n'
        f'Dir::Etc::sourceparts "{tmp_path}/parts";\nAPT::Sandbox::User "root";\n'
    )
    code, said = run("apt-get", "-q", "update", APT_CONFIG=str(configuration))
    assert code == 0, said
    return str(configuration)


def test_not_root() -> None:
    """Without root the command says so, and why."""
    nobody = ["unshare", "--user"] if os.geteuid() == 0 else []
    if nobody and subprocess.run([*nobody, "true"], check=False).returncode:
        pytest.skip("no other user can be impersonated here")
    code, said = run(*nobody, CLEAN_ROOT, "check", "debian-12")
    assert code == 1
    assert "clean-root: has to be run as root" in said


@root_only
def test_unknown_target() -> None:
    """The message names the targets."""
    code, said = run(CLEAN_ROOT, "check", "plan9-4")
    assert code == 1
    assert "'plan9-4' is none of debian-12, debian-13, ubuntu-24.04, amzn-2023" in said


@root_only
def test_no_dnf() -> None:
    """Amazon Linux needs a dnf that has its packages."""
    code, said = run(CLEAN_ROOT, "check", "amzn-2023")
    assert code == 1
    assert "clean-root: dnf" in said


@root_only
def test_no_debootstrap(tmp_path: Path) -> None:
    """The message names the missing program, and its package."""
    for name in ("bash", "id", "env", "awk", "apt-get", "dirname"):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed")
        (tmp_path / name).symlink_to(found)
    code, said = run(CLEAN_ROOT, "check", "debian-12", PATH=str(tmp_path))
    assert (code, said) == (1, "clean-root: debootstrap is missing: apt-get install debootstrap\n")


@root_only
@debootstrap
def test_no_mirror(debian: str) -> None:
    """A distribution that is not in apt's sources has no mirror."""
    code, said = run(CLEAN_ROOT, "check", "ubuntu-24.04", APT_CONFIG=debian)
    assert code == 1
    assert "clean-root: apt here knows no mirror of ubuntu: add one to its sources" in said


@root_only
@debootstrap
def test_mirror(debian: str, tmp_path: Path) -> None:
    """The mirror is the distribution's, not that of its security updates."""
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        pytest.skip("needs debian-archive-keyring")
    assert run(CLEAN_ROOT, "check", "debian-13", APT_CONFIG=debian) == (0, "")
    code, said = run(CLEAN_ROOT, "make", "debian-13", tmp_path / "root", APT_CONFIG=debian)
    # This one is not signed.
    assert code != 0
    assert f"file:{tmp_path}/mirror/dists/trixie/Release.gpg" in said


@pytest.mark.parametrize("arguments", [(), ("--output",), ("--no-such-option", "debian-12")])
def test_usage(arguments: tuple[str, ...]) -> None:
    """A wrong command line is answered with the usage."""
    code, said = run(BUILD_WHEELS, *arguments)
    assert code == 2
    assert "packaging/build-wheels [--output DIR] TARGET..." in said
    assert "set -" not in said


@root_only
def test_nothing_is_begun(tmp_path: Path) -> None:
    """If one target cannot be made, the command is refused before it makes any."""
    output = tmp_path / "wheels"
    code, said = run(BUILD_WHEELS, "--output", output, "debian-12", "plan9-4")
    assert code == 1
    assert "clean-root: " in said
    assert not output.exists()
