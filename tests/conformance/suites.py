"""The suites: each runs programs of others in a directory of a mount, and says how each case ended.

The programs compare what the file system does with what POSIX says (pjdfstest), and what they read
with what they have written (fsx, fio). fs_mark only writes; what it has left is counted here.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 400
SHOWN_LINES = 25

#: Users that every Debian has. pjdfstest switches to them.
USERS = '[["nobody", "nogroup"], ["daemon", "daemon"]]'
#: Longer than a second: S3's times are whole seconds.
NAPTIME_S = 1.1
#: The end of a line of pjdfstest for one case.
OUTCOMES = {"ok": "passed", "FAILED": "failed", "skipped": "skipped"}

#: The seeds and the sizes of fsx: files of one part, and of several.
FSX_SEEDS = (1, 2, 3, 4)
FSX_SIZES = {"one-part": (256 << 10, 64 << 10, 5000), "parts": (24 << 20, 1500 << 10, 1000)}

FS_MARK_FILES = 2000
FS_MARK_BYTES = 4096


@dataclass(frozen=True)
class Setting:
    """What the suites use: a folder for their files outside of the mount, and fsx's first seed."""

    folder: Path
    seed: int

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file; return its path."""
        path = self.folder / name
        path.write_text(text)
        return path


@dataclass(frozen=True)
class Case:
    """One case of a suite. `outcome` is passed, failed or skipped; `detail` says why it failed."""

    name: str
    outcome: str
    detail: str = ""


Suite = Callable[[Setting, Path], Iterator[Case]]


def run(command: Sequence[str], where: Path) -> tuple[int, str]:
    """Run a program in a directory; return its exit code and its output."""
    # After that time `timeout` ends the program, and exits with 124.
    done = subprocess.run(
        ["timeout", "--kill-after=5", str(TIMEOUT_S), *command],
        cwd=where,
        env=os.environ | {"NO_COLOR": "1", "RUST_BACKTRACE": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout


def one(name: str, command: Sequence[str], where: Path) -> Case:
    """Run a program that is one case, in a directory."""
    code, output = run(command, where)
    if code == 0:
        return Case(name, "passed")
    end = output.splitlines()[-SHOWN_LINES:]
    return Case(name, "failed", "\n".join([f"exit code {code}", shlex.join(command), *end]))


def pjdfstest(setting: Setting, where: Path) -> Iterator[Case]:
    """POSIX: what system calls do, and their errors; as root, switching to other users."""
    other = setting.folder / "other"  # another file system, for EXDEV
    other.mkdir(exist_ok=True)
    features = ["utimensat", "utime_now", "posix_fallocate", "rename_ctime"]
    settings = setting.write(
        "pjdfstest.toml",
        f'[features]\nsecondary_fs = "{other}"\n'
        + "".join(f"{feature} = {{}}\n" for feature in features)
        + f"[settings]\nnaptime = {NAPTIME_S}\n[dummy_auth]\nentries = {USERS}\n",
    )
    _, output = run(["pjdfstest", "--configuration-file", str(settings)], where)
    yield from read_pjdfstest(output)


def read_pjdfstest(output: str) -> list[Case]:
    """Return the cases in pjdfstest's output. Raises ValueError if its summary counts others."""
    cases = []
    lines = output.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        match line.split():
            case [name, ("ok" | "FAILED" | "skipped") as word] if "::" in name:
                cases.append(Case(name, OUTCOMES[word], following.strip()))
            case _:
                continue
    total = re.search(r"^Summary: .* (\d+) total$", output, re.MULTILINE)
    if total is None or int(total[1]) != len(cases):
        end = "\n".join(lines[-SHOWN_LINES:])
        raise ValueError(f"pjdfstest did not end as expected, after {len(cases)} cases:\n{end}")
    return cases


def fsx(setting: Setting, where: Path) -> Iterator[Case]:
    """Random operations on one file, whose content fsx knows."""
    for size, (file_bytes, operation_bytes, operations) in FSX_SIZES.items():
        # Zero is what a mount refuses: shared mappings of a file that is being written, because it
        # bypasses the kernel's cache (ENODEV), and holes (EOPNOTSUPP).
        settings = setting.write(
            f"fsx-{size}.toml",
            f"flen = {file_bytes}\n[opsize]\nmax = {operation_bytes}\n[weights]\n"
            "read = 10.0\nwrite = 10.0\ntruncate = 3.0\nclose_open = 1.0\nfsync = 0.3\n"
            "fdatasync = 0.3\nsendfile = 1.0\ncopy_file_range = 1.0\nposix_fadvise = 1.0\n"
            "posix_fallocate = 1.0\nmapread = 0.0\nmapwrite = 0.0\ninvalidate = 0.0\n"
            "punch_hole = 0.0\n",
        )
        for index in FSX_SEEDS:
            seed = setting.seed + index
            options = ["-f", str(settings), "-S", str(seed), "-N", str(operations)]
            options += ["-P", str(setting.folder), f"{size}-{index}"]
            yield one(f"{size}::{index}", ["fsx", *options], where)


def fio_streamed(setting: Setting, where: Path) -> Iterator[Case]:
    """Files of several parts, written from their beginning to their end, by three jobs."""
    return fio(where, ["--rw=write", "--bs=128k", "--size=100m", "--numjobs=3"])


def fio_random(setting: Setting, where: Path) -> Iterator[Case]:
    """Blocks at random places of files of several parts, by three jobs, with some fsyncs."""
    rounds = ["--rw=randwrite", "--bsrange=4k-64k", "--size=32m", "--numjobs=3", "--fsync=500"]
    return fio(where, rounds)


def fio(where: Path, job: list[str]) -> Iterator[Case]:
    """Write and compare; then a second process compares again."""
    common = ["--minimal", "--verify=crc32c", "--verify_fatal=1", "--invalidate=1"]
    common += ["--verify_state_save=0"]
    command = ["fio", "--name=job", *common, *job]
    yield one("write", [*command, "--do_verify=0"], where)
    yield one("verify", [*command, "--verify_only"], where)


def fs_mark(setting: Setting, where: Path) -> Iterator[Case]:
    """Many small files, each synced, by two threads."""
    files = ["-n", str(FS_MARK_FILES // 2), "-s", str(FS_MARK_BYTES), "-t", "2", "-D", "4"]
    rest = ["-N", "500", "-S", "1", "-k", "-l", str(setting.folder / "fs_mark.log")]
    yield one("write", ["fs_mark", "-d", ".", *files, *rest], where)
    sizes = [path.stat().st_size for path in where.rglob("*") if path.is_file()]
    if sizes == [FS_MARK_BYTES] * FS_MARK_FILES:
        yield Case("count", "passed")
    else:
        yield Case("count", "failed", f"{len(sizes)} files of {sorted(set(sizes))} bytes")
