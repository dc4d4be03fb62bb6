"""What a mount sets before it serves; the rest is in `tests/mount/test_life.py`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mountpoint.config import MIB, ReadConfig
from mountpoint.mount.run import _kept_bytes


@pytest.mark.parametrize(
    ("memory_mib", "queue_mib", "kept_mib"),
    [(1024, 0, 64), (1024, 64, 128), (64, 0, 8), (64, 4, 12)],
)
def test_freed_memory(memory_mib: int, queue_mib: int, kept_mib: int) -> None:
    """Freed bodies wait for their next use: a share of the memory, and the cache's queue."""
    config = ReadConfig(part_size_bytes=8 * MIB, memory_bytes=memory_mib * MIB)
    assert _kept_bytes(config, queue_mib * MIB) == kept_mib * MIB


#: Parts of the standard library that take longer to import than they would save.
UNNEEDED = {"decimal", "fractions", "statistics", "xml.sax"}


@pytest.mark.slow
def test_imports() -> None:
    """A mount imports nothing that it does not need: it would serve later."""
    program = "import sys, mountpoint.cli.main, mountpoint.mount.run; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert "mountpoint.read.stream" in loaded
    assert not UNNEEDED & loaded


#: Opens a cache as a mount does, and prints which files it opens, and how many directories it
#: lists.
OPENING = """
import json, sys
from mountpoint.cache.block_cache import BlockCache
from mountpoint.cache.directory import CacheDirectory
from mountpoint.metrics.counters import Counters

opened, listed = [], 0

def hook(event, arguments):
    global listed
    if event == "open":
        opened.append(str(arguments[0]))
    listed += event in ("os.listdir", "os.scandir")

sys.addaudithook(hook)
cache = BlockCache(
    CacheDirectory.open(sys.argv[1]), "store", "bucket", Counters(), max_bytes=None, queue_bytes=1
)
cache.sweep()
result = json.dumps([opened, listed])
cache.close()
print(result)
"""


@pytest.mark.slow
def test_a_cache_is_not_scanned(tmp_path: Path) -> None:
    """However many blocks there are: only the directory of formats is listed."""
    for number in range(50):
        folder = tmp_path / f"mount-s3-cache/v1/bucket-{number}/00"
        folder.mkdir(parents=True)
        (folder / "block.0").touch()
    for path in (tmp_path / "mount-s3-cache", tmp_path / "mount-s3-cache/v1"):
        path.chmod(0o700)
    said = subprocess.check_output([sys.executable, "-c", OPENING, tmp_path], text=True)
    opened, listed = json.loads(said)
    assert listed == 1
    assert opened == [str(tmp_path), "mount-s3-cache", "v1", ".", "/proc/self/mountinfo"]
