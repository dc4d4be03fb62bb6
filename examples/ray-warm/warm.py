"""Fill the data cache of each node of a Ray cluster, with one task on each node.

python warm.py /mnt/data/train             # each node warms all files
python warm.py --share /mnt/data/train     # each node warms its share of them
"""

import argparse
import json
import subprocess
import sys
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def warm(paths: list[str], share: str) -> dict[str, Any]:
    """Run `mount-s3ctl warm` on this node; return its result as JSON, or an error."""
    command = ["mount-s3ctl", "warm", "--json", "--share", share, "--", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result: dict[str, Any] = json.loads(done.stdout or done.stderr)
    return result


def line(result: dict[str, Any]) -> str:
    """Return a node's result in words."""
    if "error" in result:
        return f"{result['error']} ({result['hint']})"
    return (
        f"{result['done']} of {result['files']} files in the cache, "
        f"{result['fetched_bytes'] / 1e6:.1f} MB fetched in {result['duration_s']:.1f} s, "
        f"{result['failed']} failed"
    )


def main() -> int:
    """Start a task on each node, and show the results."""
    parser = argparse.ArgumentParser(description="Fill the data cache of each node of a cluster.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="as for mount-s3ctl warm")
    parser.add_argument("--share", action="store_true", help="each node warms a share of the files")
    parser.add_argument("--address", default="auto", help="the cluster")
    options = parser.parse_args()
    ray.init(address=options.address, log_to_driver=False)
    nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
    tasks = {}
    for number, node in enumerate(nodes, 1):
        # Without a CPU of its own: the task waits for S3, and busy nodes take it, too.
        on_node = ray.remote(warm).options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
        )
        share = f"{number}/{len(nodes)}" if options.share else "1/1"
        tasks[on_node.remote(options.paths, share)] = node
    failed = False
    waiting = list(tasks)
    while waiting:
        (task,), waiting = ray.wait(waiting)
        try:
            result = ray.get(task)
        except RayError as error:  # for example, the node is gone
            result = {"error": str(error).splitlines()[0], "hint": "see the log of the node"}
        print(f"{tasks[task][:8]}: {line(result)}")
        failed = failed or bool(result.get("failed", 1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
