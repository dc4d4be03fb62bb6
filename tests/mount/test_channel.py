"""Large reads from the kernel: with the channel, without it, with another libfuse."""

import ctypes.util
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import llfuse
import pytest

from mountpoint.system import kernel
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import Mount, errno_of, mounted
from tests.random_bytes import random_bytes

pytestmark = pytest.mark.mount

SIZE = (20 << 20) + 4321
BODY = partial(random_bytes, 4, SIZE)


@pytest.fixture(scope="module")
def name(store: Store) -> str:
    """An object of several parts."""
    store.put("channel/file", BODY())
    return "channel/file"


def largest_read(mount: Mount) -> str:
    """Return the largest size of the kernel's reads, from the log."""
    (line,) = [line for line in mount.log.splitlines() if "the kernel asks" in line]
    return line.rpartition("at_most_kib=")[2].strip()


@pytest.mark.parametrize(("options", "expected"), [([], "1024"), (["--no-channel"], "128")])
def test_both_ways(
    store: Store, tmp_path: Path, name: str, options: list[str], expected: str
) -> None:
    """The bytes are the same; only the size of the kernel's reads differs."""
    with mounted(store, tmp_path, "--debug", *options) as mount:
        assert (mount.path / name).read_bytes() == BODY()
        assert largest_read(mount) == expected


def test_no_writable_mapping(store: Store, tmp_path: Path, name: str) -> None:
    """Without the channel, an open for reading and writing is refused.

    Otherwise a program could store into mapped pages that others read. The log says what to do.
    """
    with mounted(store, tmp_path, "--no-channel") as mount:
        path = mount.path / name
        assert errno_of(lambda: path.open("r+b")) == errno.EPERM
        assert "--staged-writes DIR" in mount.log
        assert path.read_bytes() == BODY()


def test_the_kernel_reads_ahead(store: Store, tmp_path: Path, name: str) -> None:
    """With root privileges, the mount sets the read-ahead that suits the opened file."""
    store.put("channel/table.parquet", b"PAR1" * 1000)
    with mounted(store, tmp_path) as mount:
        device = kernel.mount_points()[str(mount.path)]
        setting = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
        if not os.access(setting, os.W_OK):
            pytest.skip("read_ahead_kb is not writable here")
        for file, expected in [
            (name, kernel.READ_AHEAD_KB),
            ("channel/table.parquet", kernel.PIECES_READ_AHEAD_KB),
            (name, kernel.READ_AHEAD_KB),
        ]:
            (mount.path / file).read_bytes()
            assert setting.read_text() == f"{expected}\n"


def test_a_libfuse_that_a_wheel_brings(store: Store, tmp_path: Path, name: str) -> None:
    """llfuse uses the channel even if its libfuse has another name, as in wheels."""
    library = ctypes.util.find_library("fuse")
    assert library == "libfuse.so.2"
    (path,) = {
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "/libfuse.so.2" in line
    }
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    shutil.copy(path, bundle / "libwheel.so2")
    extension = Path(llfuse.__file__)
    # The new name has the same length in the table of needed libraries.
    renamed = extension.read_bytes().replace(b"libfuse.so.2\0", b"libwheel.so2\0")
    (bundle / extension.name).write_bytes(renamed)
    more = {"PYTHONPATH": str(bundle), "LD_LIBRARY_PATH": str(bundle)}
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import mountpoint.fuse.binding; print(open('/proc/self/maps').read())",
        ],
        env=os.environ | more,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"{bundle}/libwheel.so2" in loaded
    assert "/libfuse.so.2" not in loaded
    bundled = Store(store.endpoint_url, store.bucket, store.environment | more)
    with mounted(bundled, tmp_path, "--debug") as mount:
        assert (mount.path / name).read_bytes() == BODY()
        assert largest_read(mount) == "1024"


def test_a_reader_that_was_killed(store: Store, tmp_path: Path, name: str) -> None:
    """An answer to a killed reader is no error, and the mount continues."""
    held = threading.Event()

    def hold(exchange: Exchange) -> None:
        if exchange.request_headers.get("Range", "").startswith("bytes=10485760"):
            held.set()
            time.sleep(1.5)

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(hold)
        with mounted(store, tmp_path, "--debug", endpoint_url=proxy.url) as mount:
            script = "import os, sys; os.pread(os.open(sys.argv[1], os.O_RDONLY), 4096, 10485760)"
            reader = subprocess.Popen([sys.executable, "-c", script, mount.path / name])
            assert held.wait(30)
            reader.send_signal(signal.SIGKILL)
            reader.wait(30)
            time.sleep(2)
            assert (mount.path / name).read_bytes() == BODY()
            assert "fuse_reply" not in mount.log
            assert "level=error" not in mount.log
