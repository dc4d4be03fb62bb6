"""All kinds of faults, in all operations, on both data planes: see fault_table."""

import concurrent.futures
import contextlib
import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests import soak
from tests.conftest import Store
from tests.faulty_proxy import Exchange, Fault, FaultyProxy
from tests.mount import fault_table
from tests.mount.fault_operations import (
    LARGE,
    NUMBERS,
    OPERATIONS,
    STAGED,
    STREAMED,
    Cell,
    Operation,
    write,
)
from tests.mount.fault_table import GROUPS, KINDS, RIGHT, UNNOTICED, Kind
from tests.mount.mounting import Mount, content, eventually, mounted
from tests.mount.test_ctl import done

pytestmark = pytest.mark.mount

PLANES = {"native": [], "python": ["--no-native"]}
#: The third mount has staged writes; its cells are only in `make soak`.
MOUNTS = [*PLANES, "staged"]
OPTIONS = [
    *("--prefix", "table/", "--read-timeout", str(fault_table.TOTAL_S)),
    *("--write-part-size", str(5 << 20), "--max-threads", "64"),
    *("--allow-overwrite", "--allow-delete", "--allow-rename", "--allow-append"),
]
#: Two of the kinds.
NOTHING, IN_BODY = "silence, and the server gets nothing", "silence in the body"
#: Cells at the same time.
AT_ONCE = 12
#: Cells that take longer are only in `make soak`.
LONG_S = 60.0
#: Seconds within which a killed program ends.
KILLED_S = 5.0


@dataclass(frozen=True)
class World:
    """A mount on one plane, and the proxy before its store."""

    operations: Collection[str]
    mount: Mount
    proxy: FaultyProxy
    store: Store
    strangers: list[str]  # the requests that came to the foreign host

    def cell(self) -> Cell:
        """Return a new directory, which the kernel knows."""
        name = f"cell-{next(NUMBERS)}-"
        cell = Cell(self.mount.path / name, self.store, f"table/{name}/")
        cell.put("there", b"so that the directory is there")
        cell.path.stat()
        return cell


@pytest.fixture(scope="module", params=MOUNTS)
def world(
    request: pytest.FixtureRequest, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A mount for cells: on one plane, or with staged writes."""
    folder = tmp_path_factory.mktemp("table")
    staging = folder / "staging"
    staging.mkdir()
    others = PLANES.get(request.param, ["--staged-writes", str(staging)])
    with (
        FaultyProxy(store.endpoint_url) as proxy,
        mounted(store, folder, *OPTIONS, *others, endpoint_url=proxy.url) as mount,
    ):
        it = World(STREAMED if request.param in PLANES else STAGED, mount, proxy, store, [])

        def note_stranger(exchange: Exchange) -> None:
            if (exchange.header("host") or "").startswith(fault_table.FOREIGN_HOST):
                it.strangers.append(exchange.target)

        proxy.before.append(note_stranger)
        # Until a part has arrived, the next one gets the time that a slow connection needs.
        write(it.cell(), "first", LARGE())
        yield it


class Strikes:
    """The fault of one cell: strikes the requests for its directory."""

    def __init__(self, kind: Kind, operation: Operation, cell: Cell) -> None:
        self._kind = kind
        self._operation = operation
        self._mark = cell.path.name
        self._lock = threading.Lock()
        self.struck: Counter[tuple[object, ...]] = Counter()

    def __call__(self, exchange: Exchange) -> None:
        if self._mark not in exchange.target:
            return
        if not self._kind.each and not self._operation.decides(exchange):
            return
        target = exchange.target
        words = ("partNumber=", "uploadId=", "uploads")
        sort = (exchange.method, exchange.is_list, *(word in target for word in words))
        with self._lock:
            if self._kind.times is not None and self.struck[sort] >= self._kind.times:
                return
            self.struck[sort] += 1
        self._kind.strike(exchange)


@contextlib.contextmanager
def struck(world: World, kind: Kind, operation: Operation, cell: Cell) -> Iterator[Strikes]:
    """Cause the fault in the requests for a cell."""
    strikes = Strikes(kind, operation, cell)
    faults: list[Fault] = world.proxy.before if kind.before else world.proxy.faults
    faults.append(strikes)
    try:
        yield strikes
    finally:
        faults.remove(strikes)


def outcome_of(world: World, kind: Kind, name: str) -> tuple[str, float, Cell, Strikes]:
    """Do an operation with a fault; return how it ended and after how many seconds."""
    operation = OPERATIONS[name]
    cell = world.cell()
    with contextlib.closing(operation.steps(cell)) as steps:
        next(steps)
        with struck(world, kind, operation, cell) as strikes:
            begun_s = time.monotonic()
            outcome = RIGHT
            try:
                next(steps, None)
            except OSError as error:
                outcome = errno.errorcode[error.errno or 0]
            except AssertionError as error:
                outcome = f"wrong: {error}"
            took_s = time.monotonic() - begun_s
    return outcome, took_s, cell, strikes


def try_cell(world: World, kind: Kind, name: str) -> list[str]:
    """Try one operation with one kind of fault; return what was wrong."""
    expected = kind.outcome_of(name)
    outcome, took_s, cell, strikes = outcome_of(world, kind, name)
    wrong = []
    if not strikes.struck:
        wrong.append("the fault has struck no request")
    if outcome != expected:
        wrong.append(f"{outcome}, not {expected}")
    if took_s > kind.limit_s(name):
        wrong.append(f"took {took_s:.1f} s, more than {kind.limit_s(name):.0f} s")
    lines = [line for line in world.mount.log.splitlines() if f"/{cell.path.name}" in line]
    failures = [line for line in lines if "operation failed" in line]
    if outcome == RIGHT and failures:
        wrong.append(f"failures are logged: {failures}")
    if outcome not in (RIGHT, "ENOENT"):
        parts = ("operation=", f"errno={outcome}", kind.code)
        with contextlib.suppress(AssertionError):
            eventually(lambda: logged(world.mount, cell, parts), within_s=2)
        if not logged(world.mount, cell, parts):
            wrong.append(f"no line has {parts}: {lines}")
    # The fault is over.
    try:
        for file, bodies in OPERATIONS[name].leaves.items() if outcome != RIGHT else ():
            cell.expect(file, *bodies)
        with contextlib.closing(OPERATIONS[name].steps(world.cell())) as steps:
            next(steps)
            next(steps, None)
        os.listdir(cell.path)
    except (OSError, AssertionError) as error:
        wrong.append(f"afterwards: {error}")
    times = "once" if kind.times else "for ever"
    return [f"{kind.says}, {times}, {name}: {each}" for each in wrong]


def logged(mount: Mount, cell: Cell, parts: tuple[str, ...]) -> bool:
    """Whether a line of the log about a cell has all these parts."""
    return any(
        f"path=/{cell.path.name}" in line and all(part in line for part in parts)
        for line in mount.log.splitlines()
    )


def chosen(world: World) -> list[tuple[Kind, str]]:
    """Return all cells for which something is promised; in `make test` one of each kind.

    That one is of an operation that has had the fewest, and does not take minutes.
    """
    source, had = random.Random(soak.SEED), Counter[str]()
    cells = []
    for kind in KINDS:
        names = [name for name in kind.operations if name in world.operations]
        names = [name for name in names if kind.outcome_of(name) != UNNOTICED]
        source.shuffle(names)
        if soak.TIMES == 1:
            brief = [name for name in names if kind.limit_s(name) < LONG_S]
            names = sorted(brief, key=lambda name: had[name])[:1]
        had.update(names)
        cells += [(kind, name) for name in names]
    return cells


@pytest.mark.parametrize("world", MOUNTS if soak.TIMES > 1 else PLANES, indirect=True)
@pytest.mark.parametrize("group", GROUPS)
def test_cells(world: World, group: str) -> None:
    """Each operation has the outcome that the table says, within its time, and the mount works."""
    cells = [(kind, name) for kind, name in chosen(world) if kind.group == group]
    soak.count_cases(len(cells))
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = list(pool.map(lambda cell: try_cell(world, *cell), cells))
    found = list(itertools.chain(*wrong))
    assert found == [], "\n".join(found)
    assert world.strangers == []


def state_of(process: "subprocess.Popen[bytes]") -> str:
    """Return a process' state as in ps: D is uninterruptible sleep."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def kill_while_waiting(world: World, kind: Kind, by: signal.Signals, name: str) -> list[str]:
    """End a program that waits for a silent server; return what was wrong."""
    operation, cell = OPERATIONS[name], world.cell()
    with contextlib.closing(operation.steps(cell)) as steps:
        next(steps)
        command = ["sh", "-c", f"exec {operation.command}"]
        with (
            struck(world, kind, operation, cell) as strikes,
            subprocess.Popen(
                command, cwd=cell.path, stdout=subprocess.PIPE, start_new_session=True
            ) as program,
        ):
            eventually(lambda: bool(strikes.struck))
            time.sleep(0.2)
            os.killpg(program.pid, by)
            begun_s = time.monotonic()
            state = ""
            try:
                program.wait(KILLED_S)
            except subprocess.TimeoutExpired:
                state = state_of(program)
            program.wait(200)
            took_s = time.monotonic() - begun_s
    wrong = []
    if took_s >= KILLED_S:
        wrong.append(f"in state {state} for {took_s:.1f} s")
    if program.returncode != -by:
        wrong.append(f"ended with {program.returncode}")
    return [f"{kind.says}, {name}, after {by.name}: {each}" for each in wrong]


def silent(says: str, times: int | None) -> Kind:
    """Return a kind of silence."""
    (kind,) = [kind for kind in KINDS if (kind.says, kind.times) == (says, times)]
    return kind


@pytest.mark.parametrize(("says", "by"), [(NOTHING, signal.SIGKILL), (IN_BODY, signal.SIGTERM)])
def test_killed(world: World, says: str, by: signal.Signals) -> None:
    """A program that waits for a silent server can be killed, and leaves no file open."""
    kind = silent(says, None)
    names = [name for name in kind.operations if name in world.operations]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = list(pool.map(partial(kill_while_waiting, world, kind, by), names))
    found = list(itertools.chain(*wrong))
    assert found == [], "\n".join(found)
    eventually(lambda: open_files(world.mount) == 0, within_s=fault_table.TOTAL_S + 20)


def open_files(mount: Mount) -> int:
    """Return how many files are open, as the mount counts them."""
    return int(json.loads(done("status", mount.path, "--json"))[0]["open_files"])


EXITS = """
import os, sys, threading, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(file, b"all of it")
threading.Thread(target=os.fsync, args=(file,), daemon=True).start()
time.sleep(0.5)
os._exit(0)
"""


def test_a_program_that_exits(world: World) -> None:
    """If a program exits while one of its threads waits for S3, its file is uploaded."""
    cell = world.cell()
    with struck(world, silent(NOTHING, 1), OPERATIONS["write"], cell):
        subprocess.run([sys.executable, "-c", EXITS, cell.path / "file"], check=True, timeout=60)
        eventually(lambda: content(world.store, f"{cell.prefix}file") == b"all of it")
