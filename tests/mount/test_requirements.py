"""Missing requirements of the machine are reported, and nothing is mounted."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import PROGRAM, environment, store_options
from tools.mounting import is_mounted

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can take rights away"),
]


def refused(store: Store, path: Path, *less: str) -> str:
    """Mount with fewer rights; return the message."""
    result = subprocess.run(
        ["setpriv", *less, PROGRAM, store.bucket, path, *store_options(store)],
        env=environment(store.environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1, result
    assert not is_mounted(path)
    assert 1 <= len(result.stderr.splitlines()) <= 2
    return result.stderr


@pytest.fixture
def path(folder: Path) -> Path:
    """A directory to mount on."""
    path = folder / "mnt"
    path.mkdir()
    return path


def test_without_the_capability(store: Store, path: Path) -> None:
    """Root in a container without the right to mount."""
    said = refused(store, path, "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    assert "no CAP_SYS_ADMIN" in said
    assert "--cap-add SYS_ADMIN" in said
