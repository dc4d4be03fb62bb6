"""The files in packaging/: linters find no fault, and a package can be made from wheels."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"


def clean(*command: str | Path) -> None:
    """Run a linter of the environment; it must find nothing. Skip if it is missing."""
    program = Path(sys.executable).with_name(str(command[0]))
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [program, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_shell() -> None:
    """Shell scripts: shellcheck."""
    clean("shellcheck", PACKAGING / "build-package", *PACKAGING.rglob("*.sh"))


def test_yaml() -> None:
    """Image Builder's component and the pod: yamllint."""
    clean("yamllint", "--strict", "-c", PACKAGING / "yamllint.yml", PACKAGING)


def test_container() -> None:
    """The Containerfile: hadolint."""
    clean("hadolint", PACKAGING / "container" / "Containerfile")


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes(version: str) -> None:
    """The pod, by the API's schemas: of the first version with sidecars, and of a recent one."""
    clean("kubernetes-validate", "--strict", "-k", version, PACKAGING / "kubernetes" / "pod.yml")


#: A wheel that replaces ours, whose dependencies would take minutes.
WHEEL = {
    "stand_in.py": "def main():\n    print('mount-s3 9.8.7')\n",
    "mount_s3-9.8.7.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: mount-s3\nVersion: 9.8.7\n"
        "Provides-Extra: otlp\nProvides-Extra: prometheus\n"
    ),
    "mount_s3-9.8.7.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
    "mount_s3-9.8.7.dist-info/entry_points.txt": (
        "[console_scripts]\nmount-s3 = stand_in:main\nmount-s3ctl = stand_in:main\n"
        "other = stand_in:main\n"
    ),
    "mount_s3-9.8.7.dist-info/RECORD": "",
}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "builder"), [("deb", "dpkg-deb"), ("rpm", "rpmbuild")])
def test_package(kind: str, builder: str, tmp_path: Path) -> None:
    """A package has an environment without pip, the links, the pages and the unit."""
    if shutil.which(builder) is None:
        pytest.skip(f"{builder} is not installed")
    code = "import sys, ensurepip, venv; assert sys.version_info >= (3, 11)"
    command = ["/usr/bin/python3", "-c", code]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("/usr/bin/python3 makes no virtual environments, or is too old")
    with zipfile.ZipFile(tmp_path / "mount_s3-9.8.7-py3-none-any.whl", "w") as wheel:
        for name, text in WHEEL.items():
            wheel.writestr(name, text)
    output = tmp_path / "output"
    done = subprocess.run(
        [PACKAGING / "build-package", tmp_path, output],
        env=os.environ | {"FORMAT": kind},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (package,) = output.iterdir()
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    if kind == "deb":
        subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    else:
        body = package.read_bytes()
        archive = subprocess.run(["rpm2archive", "-"], input=body, capture_output=True, check=True)
        subprocess.run(["tar", "-xz", "-C", unpacked], input=archive.stdout, check=True)
    home = unpacked / "opt" / "mount-s3"
    for name in ("mount-s3", "mount-s3ctl"):
        assert (unpacked / "usr" / "bin" / name).readlink() == Path("/opt/mount-s3/bin", name)
        assert (home / "bin" / name).read_text().startswith("#!/opt/mount-s3/bin/python")
        assert (unpacked / "usr" / "share" / "man" / "man1" / f"{name}.1.gz").stat().st_size
    scripts = {path.name for path in (home / "bin").iterdir()}
    ours = {name for name in scripts if not name.startswith("python")}
    assert ours == {"mount-s3", "mount-s3ctl"}
    (modules,) = home.glob("lib/python*/site-packages")
    assert {path.name for path in modules.iterdir()} >= {"stand_in.py", "__pycache__"}
    assert not (modules / "pip").exists()
    unit = unpacked / "usr" / "lib" / "systemd" / "system" / "mount-s3@.service"
    assert "ExecStart=/usr/bin/mount-s3 " in unit.read_text()
    # No file names the folder in which it was made.
    files = (path for path in home.rglob("*") if path.is_file() and not path.is_symlink())
    assert [path for path in files if b"/files/opt/mount-s3" in path.read_bytes()] == []
