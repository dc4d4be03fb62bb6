"""The memory of a mount while many files are being written."""

import os
from pathlib import Path

from bench.measure import Process
from tests.conftest import Store
from tests.mount.mounting import content, mounted

MIB = 1 << 20
FILES = 40
#: One part and the beginning of the next one.
SIZE = 9 * MIB
#: 64 MiB for files, 48 for the CRT's requests in flight, 32 for requests, and the program itself.
#: Parts of all files would be 320 MiB, and as much again in flight.
MAX_BYTES = 320 * MIB


def test_many_files_written_in_turn(store: Store, folder: Path) -> None:
    """A program that writes many files in turn succeeds, and the mount stays small."""
    block = os.urandom(MIB)
    names = [f"{number}" for number in range(FILES)]
    options = ["--memory-target", "64", "--prefix", "memory/", "--debug"]
    with mounted(store, folder, *options) as mount:
        files = [(mount.path / name).open("wb", buffering=0) for name in names]
        for _ in range(SIZE // MIB):
            for number, file in enumerate(files):
                assert file.write(bytes([number]) + block[1:]) == MIB
        for file in files:
            file.close()
        assert Process(mount.pid).peak_rss_bytes() < MAX_BYTES
        if os.geteuid() == 0:  # other users may not look
            folders = Path(f"/proc/{mount.pid}/fd")
            assert not [each for each in folders.iterdir() if "deleted" in os.readlink(each)]
        assert mount.log.count("written data waits in temporary files") == 1
        assert "--memory-target" not in mount.log
    for number, name in list(enumerate(names))[::8]:
        assert content(store, f"memory/{name}") == (bytes([number]) + block[1:]) * (SIZE // MIB)
