"""A directory is renamed while changes below it are on their way to S3."""

import os
import stat
import threading
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import mounted
from tests.mount.test_rename import OPTIONS

WHEN_NS = 981_173_106_000_000_007
#: The values in the object's metadata.
MODE, WHEN = str(stat.S_IFREG | 0o604), "981173106.000000007"
#: Longer than a rename that does not wait for other changes.
RENAME_S = 2.0


class SlowClose:
    """Uploads an empty file before its mode is set, and delays the copy beyond the rename.

    The kernel reports the last close after the program has gone on. So the upload is in progress
    when the program sets mode and time. A copy of the object onto itself keeps these, and arrives
    late. A rename that did not wait for the copy would overtake it.
    """

    def __init__(self) -> None:
        self.uploaded = threading.Event()
        self.set = threading.Event()
        self.copying = threading.Event()
        self.moved = threading.Event()

    def before(self, exchange: Exchange) -> None:
        """Hold a request."""
        copies = exchange.header("x-amz-copy-source") is not None
        if exchange.method == "PUT" and exchange.target.endswith("/old/empty"):
            if not copies:
                self.uploaded.set()
                self.set.wait(RENAME_S)
            else:
                self.copying.set()
                self.moved.wait(RENAME_S)
        elif exchange.is_list and exchange.target.count("old%2F") == 1 and self.set.is_set():
            self.copying.wait(RENAME_S)

    def after(self, exchange: Exchange) -> None:
        """Record that the object was moved."""
        if exchange.method == "PUT" and exchange.target.endswith("/new/empty"):
            self.moved.set()


@pytest.mark.parametrize("how", ["streamed", "staged"])
def test_set_attributes_go_along(flat_store: Store, folder: Path, how: str) -> None:
    """Mode and time of a file that was just closed are kept under its new name."""
    prefix = f"races-{how}/"
    options = [*OPTIONS, "--attributes", "keep", "--prefix", prefix]
    if how == "staged":
        (folder / "stage").mkdir()
        options += ["--staged-writes", str(folder / "stage")]
    slow = SlowClose()
    with FaultyProxy(flat_store.endpoint_url) as proxy:
        proxy.before.append(slow.before)
        proxy.faults.append(slow.after)
        with mounted(flat_store, folder, *options, endpoint_url=proxy.url) as mount:
            old, new = mount.path / "old", mount.path / "new"
            old.mkdir()
            (old / "empty").touch()
            assert slow.uploaded.wait(10)
            (old / "empty").chmod(0o604)
            os.utime(old / "empty", ns=(WHEN_NS, WHEN_NS))
            slow.set.set()
            old.rename(new)
            found = (new / "empty").stat()
            assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o604, WHEN_NS)
            assert os.listdir(mount.path) == ["new"]
    client = flat_store.client()
    told = client.head_object(Bucket=flat_store.bucket, Key=f"{prefix}new/empty")["Metadata"]
    assert (told["mode"], told["mtime"]) == (MODE, WHEN)
