"""The example for Ray: tasks on two nodes of a cluster warm the cache of a real mount."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mountpoint.cache.directory import FORMAT, NAME
from tests.conftest import Store
from tests.mount.mounting import environment, mounted

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray-warm" / "warm.py"
FILES = 40
SIZE = 100_000

#: A cluster of two nodes until standard input ends. Ray's sockets need a short path.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(**node)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def address() -> Iterator[str]:
    """A cluster of two nodes on this machine."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        cluster = subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment({"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder}),
        )
        try:
            assert cluster.stdout is not None
            lines = (line.split() for line in cluster.stdout)
            yield next(words[1] for words in lines if words[:1] == ["address"])
        finally:
            cluster.communicate()


def warm(address: str, *arguments: str | Path) -> tuple[int, list[str]]:
    """Run the example; return its exit code, and a line for each node."""
    done = subprocess.run(
        [sys.executable, EXAMPLE, "--address", address, *arguments],
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, sorted(done.stdout.splitlines()) or [done.stderr]


def counts(lines: list[str]) -> list[int]:
    """Return the number of files in the cache of each node."""
    return [int(line.split()[1]) for line in lines]


def test_warming_on_each_node(store: Store, folder: Path, address: str) -> None:
    """With shares each node warms other files, together all; without, each node warms all."""
    for number in range(FILES):
        store.put(f"ray/{number:02}", os.urandom(SIZE))
    cache = folder / "cache"
    with mounted(store, folder, "--prefix", "ray/", "--debug", "--cache", str(cache)) as mount:
        code, lines = warm(address, "--share", mount.path)
        assert (code, len(lines)) == (0, 2), lines
        assert sum(counts(lines)) == FILES
        assert min(counts(lines)) > 0
        assert len(list((cache / NAME / FORMAT).glob("*-*/??/*.*"))) == FILES
        before = mount.counters()["bytes_fetched"]
        assert before == FILES * SIZE
        code, lines = warm(address, mount.path)
        assert (code, counts(lines)) == (0, [FILES, FILES])
        assert mount.counters()["bytes_fetched"] == before
        code, lines = warm(address, mount.path / "absent")
        assert code == 1
        assert all("1 failed" in line for line in lines), lines
    code, lines = warm(address, folder)
    assert code == 1
    assert all(f"you have no mount at '{folder}'" in line for line in lines), lines
