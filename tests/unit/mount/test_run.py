"""What a mount sets before it serves; the rest is in `tests/mount/test_life.py`."""

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
