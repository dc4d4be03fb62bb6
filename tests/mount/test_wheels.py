"""Wheels: from the source archive, on a real mount; and from packaging/build-wheels."""

import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import eventually, mounted
from tests.packages import ROOT, source_archive, sources

pytestmark = pytest.mark.mount

TARGET = "debian-12"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds from the source archive."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "--isolated", "wheel", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", folder, source_archive(folder)],
        # The content is the same, and compiling takes half the time.
        env=os.environ | {"CFLAGS": "-O0 -g0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.timeout(400)
def test_content(wheel: Path) -> None:
    """The wheel has the compiled package and nothing else: no generated C, no tests."""
    package = {name for name in sources() if name.startswith("mountpoint/")}
    names = set(zipfile.ZipFile(wheel).namelist())
    beside = {name for name in names if name.partition("/")[0].endswith((".dist-info", ".data"))}
    compiled = {name for name in names if name.endswith(".so")}
    assert {name.partition(".")[0] for name in compiled} == {
        name.removesuffix(".pyx") for name in package if name.endswith(".pyx")
    }
    assert names - beside - compiled == package
    assert any(name.endswith("/licenses/LICENSE") for name in beside)


@pytest.mark.timeout(400)
def test_mount(wheel: Path, store: Store, tmp_path: Path) -> None:
    """The wheel's program mounts, reads and writes."""
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    body = os.urandom(9 << 20)
    store.put("wheels/file", body)
    environ = {"PYTHONPATH": str(installed), "AWS_ENDPOINT_URL_S3": store.endpoint_url}
    options = ("--prefix", "wheels/", "--force-path-style")
    with mounted(store, tmp_path, *options, environ=environ) as mount:
        assert str(installed) in Path(f"/proc/{mount.pid}/maps").read_text()
        assert (mount.path / "file").read_bytes() == body
        (mount.path / "copy").write_bytes(body)
        assert (mount.path / "copy").read_bytes() == body


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """A folder for packaging/build-wheels. Skips if it cannot build for Debian 12 here."""
    check = subprocess.run(
        [ROOT / "tools" / "clean-root", "check", TARGET],
        capture_output=True,
        text=True,
        check=False,
    )
    if check.returncode:
        pytest.skip(f"no {TARGET} can be made here: {check.stderr.strip()}")
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


def build(temporary: Path, output: Path) -> "subprocess.Popen[str]":
    """Start to build the wheels for Debian 12 in `output`."""
    return subprocess.Popen(
        [ROOT / "packaging" / "build-wheels", "--output", output, TARGET],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted(number: signal.Signals, temporary: Path, tmp_path: Path) -> None:
    """An interrupted build leaves nothing: no process, mount, file or wheels."""
    with build(temporary, tmp_path / "wheels") as program:
        try:
            # debootstrap is running: a second process works in the new root.
            eventually(lambda: any(temporary.glob("build-wheels.*/build/debootstrap")))
            program.send_signal(number)
            assert program.wait(timeout=30) == 128 + number
        finally:
            program.kill()
    assert list(temporary.iterdir()) == []
    assert str(temporary) not in Path("/proc/self/mountinfo").read_text()
    assert not (tmp_path / "wheels" / TARGET).exists()


@pytest.mark.skipif(
    not os.environ.get("MOUNT_S3_TEST_WHEELS"),
    reason="takes five to ten minutes: set MOUNT_S3_TEST_WHEELS=1, or run make wheels",
)
@pytest.mark.timeout(1800)
def test_build_wheels(temporary: Path, tmp_path: Path) -> None:
    """Wheels and package are built and installed in a new Debian 12, and bytes compared."""
    output = tmp_path / "wheels"
    with build(temporary, output) as program:
        said, _ = program.communicate()
    assert program.returncode == 0, said
    projects = {path.name.partition("-")[0] for path in (output / TARGET).iterdir()}
    assert projects >= {"mount_s3", "llfuse", "awscrt", "botocore", "click", "structlog"}
    log = (output / f"{TARGET}.log").read_text()
    assert len(list((output / TARGET).glob("mount-s3_*.deb"))) == 1
    # With the wheels, and with the package.
    for user in ("root", "someone"):
        assert log.count(f"as {user}: 5 files read, one written, all bytes are right") == 2
    # No host of a mirror or an index.
    assert set(re.findall(r"://([^/\s]*)", log)) == {"..."}
    assert list(temporary.iterdir()) == []
