"""Apply each mutation to a copy of this tree, and run the test that must notice it.

    python -m tools.mutations [NAME...]

A mutation is a row of `mutations.toml`. It replaces `old`, which occurs once in `file`, by `new`,
and then `test` must fail. The working tree is never changed. All named tests must first pass in an
unchanged copy. The exit code is 1 if a mutation survives or a row is wrong.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutations.toml")

#: pytest's exit code if it ran the tests and one of them failed.
FAILED = 1
TIMEOUT_S = 300


class BadRow(Exception):
    """A mutation that cannot be applied, or whose test cannot be run."""


@dataclass(frozen=True)
class Mutation:
    """One fault: with `new` instead of `old` in `file`, `test` (a pytest node id) must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str

    def apply(self, tree: Path) -> None:
        """Change the file in `tree`. Raises BadRow unless `old` occurs exactly once."""
        path = tree / self.file
        text = path.read_text()
        found = text.count(self.old)
        if found != 1:
            raise BadRow(f"{self.file} has the old text {found} times, not once")
        path.write_text(text.replace(self.old, self.new))
        # A change within the same second to the same size would go unnoticed: drop the cached code.
        Path(cache_from_source(str(path))).unlink(missing_ok=True)


def read_list(path: Path = LIST) -> list[Mutation]:
    """Return the rows of the list. Raises ValueError if two have the same name."""
    rows = [Mutation(**row) for row in tomllib.loads(path.read_text())["mutation"]]
    if len({row.name for row in rows}) != len(rows):
        raise ValueError(f"{path}: two mutations have the same name")
    return rows


def copy_tree(source: Path, target: Path) -> None:
    """Copy the files that git tracks or would add, and the built extension."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True).stdout
    names = [name for name in listed.split("\0") if name]
    names += [str(path.relative_to(source)) for path in source.glob("mountpoint/**/*.so")]
    for name in names:
        if (source / name).is_file():  # a deleted file is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def run_tests(tree: Path, tests: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Run these tests in `tree`, with its modules, until one fails."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--durations=0",
        "-p",
        "no:cacheprovider",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tree), "MOUNT_S3_TEST_SEED": "1"}
    return subprocess.run(
        [*command, *tests],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def is_caught(mutation: Mutation, pristine: Path, folder: Path) -> bool:
    """Apply one mutation to a copy of `pristine` in `folder`; return whether its test fails.

    Raises BadRow.
    """
    tree = folder / mutation.name
    shutil.copytree(pristine, tree)
    try:
        mutation.apply(tree)
        done = run_tests(tree, [mutation.test])
    except subprocess.TimeoutExpired:
        raise BadRow(f"the test has not ended after {TIMEOUT_S} s") from None
    finally:
        shutil.rmtree(tree)
    if done.returncode not in (0, FAILED):
        raise BadRow(f"pytest exited with {done.returncode}: {done.stdout[-500:]}{done.stderr}")
    return done.returncode == FAILED


def verdict(mutation: Mutation, pristine: Path, folder: Path) -> str:
    """Return "caught", "survived", or the reason why the row is wrong."""
    try:
        return "caught" if is_caught(mutation, pristine, folder) else "survived"
    except BadRow as error:
        return f"wrong: {error}"


def main(names: Sequence[str], source: Path = ROOT, rows: list[Mutation] | None = None) -> int:
    """Try the named mutations, or all; print the table; return the exit code."""
    rows = read_list() if rows is None else rows
    if unknown := set(names) - {row.name for row in rows}:
        print(f"there is no mutation {', '.join(sorted(unknown))}")
        return 2
    chosen = [row for row in rows if not names or row.name in names]
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        pristine = Path(name) / "pristine"
        copy_tree(source, pristine)
        done = run_tests(pristine, dict.fromkeys(row.test for row in chosen))
        if done.returncode:
            print(f"Without a mutation these tests have to pass:\n{done.stdout}{done.stderr}")
            return 1
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
            verdicts = pool.map(lambda row: verdict(row, pristine, Path(name)), chosen)
            bad = 0
            for row, said in zip(chosen, verdicts, strict=True):
                bad += said != "caught"
                print(f"{said:8}  {row.name:36}  {row.file}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutations caught")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
