"""Machines that boot. They take minutes, so `make test` skips them: use `make test-boot`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.machine import EC2, FOLDER, SCRIPT, Machine, make_root, why_not
from tools.servers import SeaweedFS


@pytest.fixture(scope="session", autouse=True)
def _can_boot() -> None:
    reason = why_not() if os.environ.get("MOUNT_S3_BOOT") else "it takes minutes: make test-boot"
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def root(_can_boot: None) -> Path:
    """The root folder of the distribution."""
    return make_root()


@pytest.fixture(scope="session")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The layers of a machine on which mount-s3 is installed."""
    with Machine(tmp_path_factory.mktemp("installed"), [root]) as machine:
        machine.write(SCRIPT, (EC2 / "user-data.sh").read_text())
        machine.chroot(f"WHEELS={FOLDER} BUCKET= bash {SCRIPT}")
    return [machine.layer, root]


@pytest.fixture
def machine(installed: list[Path], tmp_path: Path) -> Iterator[Machine]:
    """A machine with mount-s3, not booted yet."""
    with Machine(tmp_path, installed) as it:
        yield it


@pytest.fixture
def server() -> Iterator[SeaweedFS]:
    """A separate server, which a test may stop."""
    with SeaweedFS() as server:
        server.client().put_object(Bucket=server.bucket, Key="boot/file", Body=b"content")
        yield server
