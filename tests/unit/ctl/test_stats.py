"""`mount-s3ctl stats` on terminals of any size: its table, and its end."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mountpoint.ctl import main, mounts
from mountpoint.ctl.stats.table import IDLE_S, Activity, lines, table
from mountpoint.errors import MountError
from mountpoint.metrics.counters import Counters
from mountpoint.metrics.recorder import Meters
from tests.terminal import ALTERNATE, NORMAL, Terminal, terminal
from tests.unit.ctl.answers import answer

ROOT = Path(__file__).parents[3]


def busy_meters(programs: int = 30) -> Meters:
    """Return the measurements of a mount that did everything, for many programs."""
    meters = Meters()
    for name in ("read", "lookup", "open", "getattr", "readdir", "write", "release", "flush"):
        for _ in range(3):
            meters.operation(name).end(meters.operation(name).begin())
    for name in ("GetObject", "ListObjectsV2", "HeadObject", "PutObject", "UploadPart"):
        meters.request(name).end(None)
    meters.programs.requested("GetObject")
    for number in range(programs):
        program = meters.programs._named(f"program-{number}")
        program.read_bytes.add(1 << number)
    return meters


@pytest.mark.parametrize("height", [1, 5, 12, 20, 24, 30, 50, 200])
def test_the_table_fits(height: int) -> None:
    """The table fits any height, and the omitted rows are counted."""
    blocks = table(answer(busy_meters(), Counters(), 10.0), None)
    shown = lines(blocks, height)
    assert len(shown) <= height
    whole = lines(blocks)
    if height >= len(whole):
        assert shown == whole
    if 20 <= height < len(whole):
        assert len(shown) == height
        left_out = sum(int(line.split()[0]) for line in shown if line.endswith(" more"))
        rows = [line for line in shown if line and not line.endswith(" more")]
        assert len(rows) + left_out == len([line for line in whole if line])


def test_24_rows() -> None:
    """24 rows have some rows of each kind, the costliest programs, and the prices."""
    shown = lines(table(answer(busy_meters(), Counters(), 10.0), None), 24)
    assert len(shown) == 24
    assert max(map(len, shown)) <= 79
    first = [line.split()[0] for line in shown]
    for name in ("operation", "request", "GetObject", "program", "(unknown)", "program-29"):
        assert name in first
    assert "program-3" not in first
    assert shown[-1].startswith("requests so far $")


def test_idle_programs_go_away() -> None:
    """Programs disappear a minute after their last action, and come back."""
    meters, activity = busy_meters(2), Activity()
    numbers = {"at_s": 0.0, "meters": meters.snapshot()}
    everybody = {"program-0", "program-1", "(unknown)"}
    assert activity.note(numbers, None) == everybody

    def later(at_s: float) -> set[str]:
        nonlocal numbers
        before, numbers = numbers, {"at_s": at_s, "meters": meters.snapshot()}
        return activity.note(numbers, before)

    meters.programs._named("program-1").read_bytes.add(1)
    assert later(IDLE_S - 1) == everybody
    assert later(IDLE_S) == {"program-1"}
    assert later(2 * IDLE_S) == set()
    meters.programs._named("program-0").written_bytes.add(1)
    assert later(2 * IDLE_S + 1) == {"program-0"}


# --- on a terminal ---


class FakeMount:
    """A mount whose counters grow with each answer, or that ends."""

    directory = "/mnt"

    def __init__(self, ends_s: float) -> None:
        self._ends_s = ends_s
        self._meters = busy_meters()
        self._at_s = 0.0

    def ask(self, command: str) -> dict[str, Any]:
        """Answer `stats`."""
        assert command == "stats"
        self._at_s += 1.0
        if self._at_s > self._ends_s:
            raise MountError("the mount at '/mnt' has ended")
        self._meters.read(1_000_000)
        for number in range(30):  # otherwise they would disappear after a minute
            self._meters.programs._named(f"program-{number}").read_bytes.add(1)
        return answer(self._meters, Counters(), self._at_s)


def run_stats(ends_s: float = 1e9) -> None:
    """Run the command for a mount that does not exist."""
    found = SimpleNamespace(directory="/mnt", ask=FakeMount(ends_s).ask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mounts, "answering", lambda environ: [found])
        main.main(["stats", "/mnt", *sys.argv[1:]])


@pytest.fixture
def screen() -> Iterator[Terminal]:
    """A usual terminal with text on it."""
    with terminal(80, 24) as made:
        made.stream.write("before\n")
        made.stream.flush()
        made.until(lambda text: text == "before")
        yield made


IMPORT = "from tests.unit.ctl.test_stats import run_stats; "
COMMAND = [sys.executable, "-c", IMPORT + "run_stats()", "-i", "0.2"]
#: A size in the environment would override the terminal's own.
SIZES = ("LINES", "COLUMNS")
ENVIRON = {name: value for name, value in os.environ.items() if name not in SIZES}
ENVIRON["PYTHONPATH"] = str(ROOT)


@pytest.mark.slow
def test_it_has_a_screen_of_its_own(screen: Terminal) -> None:
    """The table has its own screen, as high as the terminal. Ctrl-C ends it without a trace."""
    program = screen.run(COMMAND, ENVIRON)
    text = screen.until(lambda text: "in the last 1 s" in text)
    assert screen.output.count(ALTERNATE) == 1
    assert len(screen.lines) == 24
    assert screen.lines[0] == "bucket at /mnt"
    assert "program-29" in text
    screen.resize(60, 30)
    screen.type(b"x")  # any other key
    screen.until(lambda _: len(screen.lines) == 30)
    screen.type(b"\x03")
    assert screen.wait(program) == 0
    before, _, after = screen.output.partition(ALTERNATE)
    assert plain(before) == "before"
    assert plain(after.partition(NORMAL)[2]) == ""


def plain(output: bytes) -> str:
    """Return the output without control sequences."""
    return re.sub(r"\x1b(\[[?\d;]*[a-zA-Z]|[()].|.)", "", output.decode()).strip()


@pytest.mark.slow
def test_q_ends_it(screen: Terminal) -> None:
    """As in top and less."""
    program = screen.run(COMMAND, ENVIRON)
    screen.until(lambda text: "program-29" in text)
    screen.type(b"q")
    assert screen.wait(program) == 0
    assert NORMAL in screen.output


@pytest.mark.slow
def test_the_mount_ends(screen: Terminal) -> None:
    """The error is shown on the normal screen."""
    program = screen.run([sys.executable, "-c", IMPORT + "run_stats(3)", "-i", "0.2"], ENVIRON)
    assert screen.wait(program) == 1
    assert plain(screen.output.partition(NORMAL)[2]) == "Error: the mount at '/mnt' has ended"
