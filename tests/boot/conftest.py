"""Machines that boot. They take minutes, so they are no part of `make test`: `make test-boot`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.machine import FOLDER, Machine, make_root, why_not

#: As packaging/ec2/install does it.
INSTALL = f"""
python3 -m venv /opt/mount-s3
/opt/mount-s3/bin/pip --isolated install -q --no-index --find-links {FOLDER} mount-s3
ln -s /opt/mount-s3/bin/mount-s3 /usr/local/bin/mount-s3
"""


@pytest.fixture(scope="session", autouse=True)
def _can_boot() -> None:
    reason = why_not() if os.environ.get("MOUNT_S3_BOOT") else "it takes minutes: make test-boot"
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def root(_can_boot: None) -> Path:
    """What the distribution brings along."""
    return make_root()


@pytest.fixture(scope="session")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The layers of a machine on which mount-s3 has been installed."""
    with Machine(tmp_path_factory.mktemp("installed"), [root]) as machine:
        machine.chroot(INSTALL)
    return [machine.layer, root]


@pytest.fixture
def machine(installed: list[Path], tmp_path: Path) -> Iterator[Machine]:
    """A machine with mount-s3, not booted yet."""
    with Machine(tmp_path, installed) as it:
        yield it
