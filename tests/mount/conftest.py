"""Without FUSE the mount tests fail in CI, and are skipped elsewhere; the reason is shown."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.conftest import Store
from tests.mount.mounting import Mount, mounted
from tools.fuse_check import why_no_fuse


@pytest.fixture(scope="session", autouse=True)
def _fuse() -> None:
    reason = why_no_fuse()
    if reason is None:
        return
    if os.environ.get("CI"):
        pytest.fail(f"FUSE cannot be used here: {reason}", pytrace=False)
    pytest.skip(f"FUSE cannot be used here: {reason}")


@pytest.fixture(scope="module")
def mount(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """The store's bucket, mounted with default options for all tests of a module."""
    with mounted(store, tmp_path_factory.mktemp("module"), "--debug") as it:
        yield it


@pytest.fixture
def own(request: pytest.FixtureRequest) -> str:
    """The name of a directory that no other test uses, for tests that share a mount."""
    return re.sub(r"\W+", "-", request.node.name).strip("-")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for mounts."""
    return tmp_path


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system trusts."""
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, folder: Path) -> Path:
    """Its certificate, as a file."""
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return folder / "ca.pem"
