"""The service manager: readiness, and the shipped unit."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import PROGRAM, foreground

pytestmark = pytest.mark.mount

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "mount-s3@.service"


def test_readiness(store: Store, folder: Path) -> None:
    """The manager is notified when files can be read, and not before. SIGTERM exits with 0."""
    store.put("systemd/file", b"content")
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)
        environ = {"NOTIFY_SOCKET": str(address)}
        with foreground(store, folder, "--prefix", "systemd/", environ=environ) as (program, path):
            state = dict(line.split("=", 1) for line in manager.recv(4096).decode().split("\n"))
            assert state["READY"] == "1"
            assert str(path) in state["STATUS"]
            assert (path / "file").read_bytes() == b"content"
            program.terminate()
            assert program.wait(timeout=30) == 0


def test_the_unit(tmp_path: Path) -> None:
    """systemd finds no fault in the unit."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = UNIT.read_text()
    assert "/usr/local/bin/mount-s3 " in text
    unit = tmp_path / "mount-s3@data.service"
    unit.write_text(text.replace("/usr/local/bin/mount-s3", str(PROGRAM)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "mount-s3" in line]
    assert (done.returncode, said) == (0, [])
