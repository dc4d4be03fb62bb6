"""--log-metrics: numbers in the log, every five seconds and once at the end."""

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import Mount, eventually, foreground, mounted

pytestmark = pytest.mark.mount


def lines(mount: Mount, event: str) -> list[dict[str, str]]:
    """Return the fields of all lines of a metric."""
    split = [line.split() for line in mount.log.split("\n")[:-1]]
    fields = [dict(word.split("=", 1) for word in words) for words in split]
    return [each for each in fields if each["event"] == event]


def test_log_lines_have_the_changes(store: Store, folder: Path) -> None:
    """The log has the changes since the last lines, until the end and without repetition."""
    store.put("log-metrics/a", b"x" * 70_000)
    with mounted(store, folder, "--prefix", "log-metrics/", "--log-metrics") as mount:
        assert (mount.path / "a").read_bytes() == b"x" * 70_000
        eventually(lambda: len(lines(mount, "fuse.io_size")) == 1)
        (mount.path / "new").write_bytes(b"y" * 3000)
        os.kill(mount.pid, signal.SIGTERM)
        eventually(mount.has_ended)
    read, write = lines(mount, "fuse.io_size")
    assert (read["fuse_request"], read["unit"], read["sum"]) == ("read", "By", "70000")
    assert (write["fuse_request"], write["n"], write["p50"]) == ("write", "1", "3000")
    counts = {each["s3_request"]: each["n"] for each in lines(mount, "s3.request_count")}
    assert counts == {"ListObjectsV2": "1", "GetObject": "1", "PutObject": "1"} | counts
    for line in mount.log.splitlines():
        assert " level=info logger=mountpoint.metrics event=" in line
    assert len(lines(mount, "counters")) == 1


def test_lines_in_the_foreground(store: Store, folder: Path) -> None:
    """In the foreground the lines are in the form for people."""
    with foreground(store, folder, "--log-metrics") as (program, path):
        list(path.iterdir())
        program.send_signal(signal.SIGTERM)
        said, _ = program.communicate(timeout=20)
    assert "mountpoint.metrics: fuse.request_latency fuse_request=readdir unit=us n=" in said
