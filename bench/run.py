"""Measure how fast a mount is: `python -m bench.run`, or `make bench`.

Starts SeaweedFS on loopback (or takes `--endpoint-url` and `--bucket`, with credentials in the
usual variables), fills the bucket, mounts it as a user would, and runs each workload several
times with cold caches. Prints a table of medians; `--json FILE` writes them, with the commit and
the machine, for `bench.chart`.

Server, kernel and mount share the processors of one machine, so compare only figures of the same
run. Cold caches need root (/proc/sys/vm/drop_caches); without root the program says so.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import boto3
import botocore.config

from bench import interpreter, measure, objects, served
from bench.measure import Measurement, Process, Result
from bench.programs import programs
from bench.reading import Work
from bench.workloads import Workload, workloads
from tools import mounting
from tools.fuse_check import why_no_fuse

WORKLOADS = {workload.name: workload for workload in [*workloads(), *programs()]}


class Bench:
    """The mount to measure."""

    def __init__(self, folder: Path, log_directory: Path) -> None:
        self._pid = mounting.serving_process(folder)
        self._folder = folder
        self._logs = log_directory
        self._process = Process(self._pid)

    def measure(self, workload: Workload, runs: int) -> Result:
        """Run a workload `runs` times, each with cold caches unless it is warm."""
        found: list[Measurement] = []
        alone: list[float] = []
        for _ in range(runs):
            if workload.alone is not None:
                measure.drop_caches()
                start_s = time.perf_counter()
                work = workload.alone(self._folder)
                alone.append(work.read_bytes / (time.perf_counter() - start_s))
            if not workload.warm:
                measure.drop_caches()
            found.append(self._run(workload))
        return measure.result(workload.name, workload.unit, found, alone)

    def _run(self, workload: Workload) -> Measurement:
        process = self._process
        process.reset_peak()
        counted = mounting.counters(self._pid, self._logs)
        with interpreter.watching(self._pid) as share:
            cpu_s, start_s = process.cpu_seconds(), time.perf_counter()
            work: Work = workload.run(self._folder)
            seconds = time.perf_counter() - start_s
            cpu_s = process.cpu_seconds() - cpu_s
        now = mounting.counters(self._pid, self._logs)
        return Measurement(
            work=work,
            seconds=seconds,
            cpu_seconds=cpu_s,
            counters={name: value - counted[name] for name, value in now.items()},
            rss_bytes=process.rss_bytes(),
            peak_rss_bytes=process.peak_rss_bytes(),
            held_share=share[0] if share else None,
        )


@contextlib.contextmanager
def store(arguments: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield endpoint, bucket and environment of a server with a filled bucket."""
    connections = objects.UPLOAD_THREADS
    if arguments.endpoint_url is None:
        with served.embedded(sum(objects.SIZES.values())) as server:
            objects.fill(server.client(max_pool_connections=connections), server.bucket)
            yield server.endpoint_url, server.bucket, server.environment
        return
    config = botocore.config.Config(
        s3={"addressing_style": "path"}, max_pool_connections=connections
    )
    client = boto3.client("s3", endpoint_url=arguments.endpoint_url, config=config)
    if not arguments.filled:
        objects.fill(client, arguments.bucket)
    yield arguments.endpoint_url, arguments.bucket, served.credentials()


@contextlib.contextmanager
def mounted(arguments: argparse.Namespace) -> Iterator[Bench]:
    """Yield a mount of a filled bucket."""
    with (
        store(arguments) as (url, bucket, environment),
        served.mounted(url, bucket, environment) as (folder, logs),
    ):
        yield Bench(folder, logs)


def about() -> dict[str, str]:
    """Describe the commit and the machine that are measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "python": platform.python_version(),
    }


def arguments_of(command_line: list[str]) -> argparse.Namespace:
    """Parse the command line; exit if it is invalid."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="default: all")
    parser.add_argument("--list", action="store_true", help="list the workloads")
    parser.add_argument("--endpoint-url", help="use this running server")
    parser.add_argument("--bucket", default="test-bucket", help="its bucket, which is filled first")
    parser.add_argument("--filled", action="store_true", help="the bucket is filled already")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(command_line)
    if arguments.list:
        for workload in WORKLOADS.values():
            print(f"{workload.name:18} {workload.about}")
        parser.exit()
    for name in arguments.workloads:
        if name not in WORKLOADS:
            parser.error(f"there is no workload '{name}'; --list shows them")
    if (problem := why_no_fuse()) is not None:
        parser.error(f"this machine cannot mount: {problem}")
    return arguments


def main() -> int:
    """Run the benchmark."""
    arguments = arguments_of(sys.argv[1:])
    if os.geteuid() != 0:
        print("Not root: caches stay warm, so figures for cold caches are too good.")
    results = []
    failed = False
    with mounted(arguments) as bench:
        print("\n".join(measure.header()), flush=True)
        for name in arguments.workloads or WORKLOADS:
            try:
                results.append(bench.measure(WORKLOADS[name], arguments.runs))
            except (OSError, objects.WrongBytes) as error:
                failed = True
                print(f"{name}: failed: {error}", flush=True)
            else:
                print(results[-1].line(), flush=True)
    if arguments.json:
        report = {**about(), "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
