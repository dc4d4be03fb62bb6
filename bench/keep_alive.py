"""Measure what a keeper costs, and how fast a mount goes on: `python -m bench.keep_alive`.

Kills the serving process again and again, and times the first read after each death, of a page that
the kernel does not have. Then it compares the CPU that open and close take on mounts with and
without a keeper, in turn, and shows the keeper's memory.
"""

import argparse
import os
import signal
import statistics
import sys
import time
from pathlib import Path

from bench import served
from bench.measure import Process
from tools import mounting

FILES = 200
FILE_BYTES = 10_000
LARGE_BYTES = 64 << 20
ROUNDS = 60
#: So that a death does not count as one at the start (`mount/kept/keeper.SERVED_S`).
SERVED_S = 1.0
#: Opens send no request.
OPTIONS = ("--metadata-ttl", "300")


def takeovers(url: str, bucket: str, environment: dict[str, str], deaths: int) -> None:
    """Print how long the first read after a death takes, and the keeper's memory."""
    with served.mounted(url, bucket, environment, OPTIONS) as (folder, _):
        file = os.open(folder / "large", os.O_RDONLY | os.O_DIRECT)
        seconds = []
        for number in range(deaths):
            time.sleep(SERVED_S)
            worker = mounting.serving_process(folder)
            start_s = time.perf_counter()
            os.kill(worker, signal.SIGKILL)
            assert len(os.pread(file, 4096, number << 20)) == 4096
            seconds.append(time.perf_counter() - start_s)
        os.close(file)
        median, longest = statistics.median(seconds), max(seconds)
        print(f"first read after a death: {median:.2f} s, at most {longest:.2f} s", flush=True)
        (keeper,) = mounting.keepers(folder)
        private = Path(f"/proc/{keeper}/smaps_rollup").read_text().split("\nPss:")[1].split()[0]
        print(f"memory of the keeper: {int(private) / 1024:.1f} MiB (PSS)", flush=True)


def open_and_close(url: str, bucket: str, environment: dict[str, str], options: list[str]) -> float:
    """Return the CPU microseconds of an open and a close of a known file."""
    with served.mounted(url, bucket, environment, [*OPTIONS, *options]) as (folder, _):
        names = [folder / f"small/{number:03}" for number in range(FILES)]
        for name in names:
            name.read_bytes()
        process = Process(mounting.serving_process(folder))
        cpu_s = process.cpu_seconds()
        for _ in range(ROUNDS):
            for name in names:
                os.close(os.open(name, os.O_RDONLY))
        return (process.cpu_seconds() - cpu_s) / (ROUNDS * FILES) * 1e6


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench.keep_alive", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--deaths", type=int, default=10)
    arguments = parser.parse_args()
    with served.embedded(2 * LARGE_BYTES) as server:
        client = server.client()
        client.put_object(Bucket=server.bucket, Key="large", Body=bytes(LARGE_BYTES))
        for number in range(FILES):
            key = f"small/{number:03}"
            client.put_object(Bucket=server.bucket, Key=key, Body=bytes(FILE_BYTES))
        where = server.endpoint_url, server.bucket, server.environment
        takeovers(*where, arguments.deaths)
        found: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(arguments.runs):
            for name, results in found.items():
                options = [] if name == "with" else ["--no-keep-alive"]
                results.append(open_and_close(*where, options))
        without, kept = (statistics.median(results) for results in found.values())
        ratio = kept / without
        print(f"open and close: {without:.0f} us of CPU, with a keeper {kept:.0f} (x{ratio:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
