"""Run other people's test suites on real mounts.

    python -m tests.conformance [--seed N] [SUITE...]

`make conformance` first builds the suites in .state/conformance. The server is ministack, which has
S3's flat key space. The exit code is 1 if a case does not end as `expected.toml` says.
"""

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conformance import suites
from tests.conformance.expected import Result, compare, read_list
from tools import mounting
from tools.servers import Ministack, Server

SUMMARY = "Run other people's test suites on real mounts."
PROGRAMS = Path(__file__).parents[2] / ".state" / "conformance" / "bin"

#: All operations are permitted. All users may write in all directories, because pjdfstest, which
#: switches users, cannot change the modes of directories.
OPTIONS = ["--allow-delete", "--allow-overwrite", "--allow-rename", "--allow-append"]
OPTIONS += ["--attributes", "keep", "--keep-directories", "--allow-other", "--dir-mode", "0777"]

#: The name of each suite, of its mount, and its function.
RUNS: list[tuple[str, str, suites.Suite]] = [
    ("pjdfstest", "streamed", suites.pjdfstest),
    ("pjdfstest", "staged", suites.pjdfstest),
    ("fsx", "staged", suites.fsx),
    ("fio", "streamed", suites.fio_streamed),
    ("fio", "staged", suites.fio_random),
    ("fs_mark", "streamed", suites.fs_mark),
    ("fs_mark", "staged", suites.fs_mark),
]


def main() -> int:
    """Run the suites that the command line names, or all."""
    names = sorted({name for name, _, _ in RUNS})
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=SUMMARY)
    parser.add_argument("suite", nargs="*", metavar="SUITE", help=f"one of {', '.join(names)}")
    parser.add_argument("--seed", type=int, help="of fsx; without it a new one is drawn")
    options = parser.parse_args()
    wanted = options.suite or names
    if unknown := set(wanted) - set(names):
        parser.error(f"there is no suite {unknown.pop()}")
    if os.getuid() != 0:
        parser.error("pjdfstest switches users, so this needs root")
    os.environ["PATH"] = f"{PROGRAMS}:{os.environ['PATH']}"
    if missing := [name for name in wanted if shutil.which(name) is None]:
        parser.error(f"make conformance builds {missing[0]}, or says how to install it")
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    print(f"seed of fsx: {seed}")
    groups = read_list()
    results = []
    # Below /tmp itself, because pjdfstest's other users must reach it.
    with tempfile.TemporaryDirectory(prefix="mount-s3-conformance-") as name, Ministack() as server:
        folder = Path(name)
        folder.chmod(0o755)
        setting = suites.Setting(folder, seed)
        for suite, kind, function in RUNS:
            if suite not in wanted:
                continue
            print(f"{suite} on a {kind} mount", flush=True)
            with mounted(server, folder, f"{suite}-{kind}", staged=kind == "staged") as where:
                begun = time.monotonic()
                cases = list(function(setting, where))
                seconds = time.monotonic() - begun
            results.append(compare(suite, kind, seconds, cases, groups))
    print(*report(results), sep="\n")
    return 1 if any(result.problems for result in results) else 0


@contextlib.contextmanager
def mounted(server: Server, folder: Path, name: str, *, staged: bool) -> Iterator[Path]:
    """Mount a prefix of its own, and yield its directory."""
    where, stage = folder / name, folder / f"{name}-stage"
    where.mkdir()
    options = ["--endpoint-url", server.endpoint_url, "--region", server.region]
    options += ["--force-path-style", "--prefix", f"{name}/", *OPTIONS]
    if staged:
        stage.mkdir(mode=0o700)
        options += ["--staged-writes", str(stage)]
    mounting.mount(server.bucket, where, options, server.environment, folder / f"{name}-log")
    try:
        yield where
    finally:
        mounting.unmount(where)


def report(results: list[Result]) -> Iterator[str]:
    """Yield the lines of the report: the reasons, the table, and what is not as expected."""
    for result in results:
        for reason, count in sorted(result.expected.items(), key=lambda item: -item[1]):
            yield f"{result.suite}, {result.mount}: {count:4} failed as expected: {reason}"
    line = "{:11}{:10}{:>7}{:>8}{:>19}{:>8}{:>9}{:>12}{:>9}"
    titles = ["suite", "mount", "cases", "passed", "expected failures", "varying", "skipped"]
    yield ""
    yield line.format(*titles, "unexpected", "seconds")
    for result in results:
        yield line.format(
            result.suite,
            result.mount,
            result.cases,
            result.passed,
            sum(result.expected.values()),
            result.varied,
            result.skipped,
            len(result.problems),
            round(result.seconds),
        )
    for result in results:
        for problem in result.problems:
            yield f"{result.suite}, {result.mount}: {problem}"


if __name__ == "__main__":
    sys.exit(main())
