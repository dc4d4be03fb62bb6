"""Each refusal names the option that permits it, or says that none does, and why."""

import ast
import errno
import importlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import llfuse
import pytest
import structlog
from structlog.testing import capture_logs

import mountpoint
from mountpoint import errors
from mountpoint.copy import metadata
from mountpoint.errors import NO_OPTION
from mountpoint.fs.inodes import ROOT
from mountpoint.fuse import operations
from mountpoint.fuse.operations import Operations
from mountpoint.staging.area import StagingArea
from tests.unit.fuse.test_operations import CTX
from tests.unit.mounted import Mounted, mounted
from tools import options_table

SOURCE = Path(mountpoint.__file__).parent

#: The attributes that setattr may change.
FIELDS = ("size", "mtime", "mode", "uid", "gid")

#: BadHandle also stands for calls that the kernel never makes: these need no hint.
OF_BUGS = ["handle … is not open", "the file has been closed"]


class Raised(NamedTuple):
    """An error in the source, with its possible hints."""

    location: str
    reason: str
    hints: list[str]


def text_of(node: ast.expr | None, module: ModuleType) -> list[str]:
    """Return the possible texts of an expression; "…" stands for inserted values."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.Name(id=name):
            return [getattr(module, name)]
        case ast.JoinedStr(values=values):
            return ["".join(map(part_of, values))]
        case ast.IfExp(body=body, orelse=other):
            return text_of(body, module) + text_of(other, module)
    return [""]


def part_of(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.FormattedValue)
    is_constant = isinstance(node.value, ast.Name) and node.value.id == "NO_OPTION"
    return NO_OPTION if is_constant else "…"


def raised() -> Iterator[Raised]:
    """Yield every refusal in the source."""
    kinds = (errors.Refusal, errors.BadHandle)
    names = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, kinds)
    }
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(("mountpoint", *path.relative_to(SOURCE).with_suffix("").parts))
        module = importlib.import_module(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if name in names:
                    given = dict(zip(("reason", "hint"), node.args, strict=False))
                    given |= {each.arg: each.value for each in node.keywords if each.arg}
                    (reason,) = text_of(given["reason"], module)
                    if reason in OF_BUGS:
                        continue
                    of_class = name == "NotSequential" and "hint" not in given
                    hints = [errors.NotSequential("").hint]
                    if not of_class:
                        hints = text_of(given.get("hint"), module)
                    yield Raised(f"{name}:{node.lineno}", reason, hints)


def test_every_refusal_has_a_hint() -> None:
    """The hint names an option of the program, or says that none helps."""
    found = list(raised())
    assert len(found) > 20, "the source is not read"
    assert [each for each in found if not all(map(is_uniform, each.hints))] == []


def is_uniform(hint: str) -> bool:
    """Whether a hint has the common form."""
    if hint.startswith(NO_OPTION):
        return len(hint) > len(NO_OPTION)
    options = {options_table.long_name(option) for option in options_table.options()}
    words = hint.replace(",", "").split()
    named = [word for word in words if word.startswith("--")]
    has_option = bool(named) or "…" in words
    return words[:2] == ["mount", "with"] and set(named) <= options and has_option


# --- in the log ---


class Program:
    """The actions of a program on a mount, as the kernel's operations."""

    def __init__(self, world: Mounted) -> None:
        self.world = world
        self.operations = Operations(world.fs, lambda: None)

    def __call__(self, name: str, *args: Any) -> Any:
        return getattr(self.operations, name)(*args)

    def look(self, name: bytes) -> int:
        return int(self("lookup", ROOT, name, CTX).st_ino)

    def open(self, name: bytes, flags: int) -> Any:
        return self("open", self.look(name), flags, CTX)

    def create(self, name: bytes = b"new", flags: int = os.O_WRONLY) -> Any:
        return self("create", ROOT, name, 0o644, flags, CTX)[0]

    def set(self, name: bytes, **values: int) -> None:
        fields = {f"update_{each}": each in values for each in FIELDS}
        attributes = {f"st_{each}": value for each, value in values.items()}
        attributes = {"st_mtime_ns": 0, "st_mode": 0, "st_uid": 0, "st_gid": 0} | attributes
        structs = SimpleNamespace(**attributes), SimpleNamespace(**fields)
        self("setattr", self.look(name), *structs, None, CTX)

    def rename(self, old: bytes, new: bytes) -> None:
        self.look(old)
        self("rename", ROOT, old, ROOT, new, CTX)


def write_at_7(program: Program) -> None:
    program("write", program.create(), 7, b"x")


def append_at_9(program: Program) -> None:
    program("write", program.open(b"a", os.O_WRONLY | os.O_APPEND), 9, b"x")


def open_what_is_written(program: Program) -> None:
    program("write", program.create(), 0, b"x")
    program.open(b"new", os.O_RDONLY)


def cut_what_is_written(program: Program) -> None:
    program("write", program.create(), 0, b"xyz")
    program.set(b"new", size=2)


def read_what_is_written(program: Program) -> None:
    handle = program.create(flags=os.O_RDWR)
    program("write", handle, 0, b"x")
    program("read", handle, 0, 1)


def write_what_is_read(program: Program) -> None:
    program("write", program.open(b"a", os.O_RDWR), 0, b"x")


def exchange(program: Program) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "rename_flags", lambda: 2)
        program.rename(b"a", b"b")


def change_a_large_one(program: Program) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "MAX_COPY_BYTES", 0)
        program.set(b"a", mode=0o600)


RENAMES = {"allow_rename": True}
STAGED = "--staged-writes DIR"

#: An action, the options, the errno, the reason, and a part of the hint.
REFUSALS: list[tuple[Callable[[Program], Any], dict[str, Any], str, str, str]] = [
    (lambda p: p.open(b"a", os.O_WRONLY), {}, "EPERM", "the file exists", "--allow-overwrite"),
    (lambda p: p.open(b"a", os.O_WRONLY | os.O_TRUNC), {}, "EPERM", "exists", "--allow-overwrite"),
    (lambda p: p.open(b"a", os.O_WRONLY | os.O_APPEND), {}, "EPERM", "exists", "--allow-append"),
    (
        lambda p: p("unlink", ROOT, b"a", CTX),
        {},
        "EPERM",
        "deleting files is not permitted",
        "--allow-delete",
    ),
    (lambda p: p.rename(b"a", b"c"), {}, "ENOSYS", "cannot rename", "--allow-rename"),
    (
        lambda p: p.rename(b"a", b"b"),
        RENAMES,
        "EEXIST",
        "a file has the new name",
        "--allow-overwrite",
    ),
    (lambda p: p("rmdir", ROOT, b"d", CTX), {}, "EPERM", "marker", "--keep-directories"),
    (lambda p: p.set(b"a", mode=0o600), {}, "EPERM", "attributes", "--attributes keep"),
    (change_a_large_one, {"attributes": "keep"}, "EPERM", "5 GiB", "--attributes ignore"),
    (lambda p: p.set(b"a", size=9), {}, "EPERM", "the file exists", "--allow-overwrite"),
    (lambda p: p.set(b"a", size=3), {}, "EPERM", "cannot be shortened or lengthened", STAGED),
    (write_at_7, {}, "EINVAL", "a write at 7, but the next byte to write is 0", STAGED),
    (
        append_at_9,
        {"allow_append": True},
        "EINVAL",
        "a write at 9, but the next byte to write is 7",
        STAGED,
    ),
    (cut_what_is_written, {}, "EPERM", "only to zero bytes", STAGED),
    (read_what_is_written, {}, "EBADF", "is being written", STAGED),
    (write_what_is_read, {}, "EBADF", "a write at 0 in a file of 7 bytes", STAGED),
    (open_what_is_written, {}, "EPERM", "is being written", STAGED),
    (lambda p: p.create(flags=os.O_WRONLY | os.O_SYNC), {}, "EINVAL", "O_SYNC", NO_OPTION),
    (lambda p: p.create(b"\xff"), {}, "EINVAL", "UTF-8", NO_OPTION),
    (exchange, RENAMES, "EINVAL", "exchanged", NO_OPTION),
    (lambda p: p("symlink", ROOT, b"l", b"a", CTX), {}, "EPERM", "symbolic links", NO_OPTION),
    (lambda p: p("link", p.look(b"a"), ROOT, b"l", CTX), {}, "EPERM", "hard links", NO_OPTION),
    (lambda p: p("mknod", ROOT, b"p", stat.S_IFIFO, 0, CTX), {}, "EINVAL", "pipes", NO_OPTION),
]

#: The same with staged writes.
STAGED_REFUSALS: list[tuple[Callable[[Program], Any], dict[str, Any], str, str, str]] = [
    (lambda p: p.open(b"a", os.O_WRONLY), {}, "EPERM", "the file exists", "--allow-overwrite"),
    (lambda p: p.set(b"a", size=3), {}, "EPERM", "the file exists", "--allow-overwrite"),
    (
        lambda p: p("unlink", ROOT, b"a", CTX),
        {},
        "EPERM",
        "deleting files is not permitted",
        "--allow-delete",
    ),
]


def said(program: Program, act: Callable[[Program], Any]) -> tuple[str, Any]:
    """Return the errno of a failing action, and the one warning in the log."""
    with capture_logs() as lines, pytest.raises(llfuse.FUSEError) as caught:
        act(program)
    (line,) = [line for line in lines if line["log_level"] == "warning"]
    return errno.errorcode[caught.value.errno], line


@pytest.fixture(autouse=True)
def _logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log as structlog does by default, even if another test has bound this logger."""
    monkeypatch.setattr(operations, "log", structlog.get_logger())
    monkeypatch.setattr("mountpoint.fs.writes.streamed.lifecycle.SETTLE_S", 0.05)
    monkeypatch.setattr(operations, "is_wide", lambda: True)


OBJECTS = {b"a": b"content", b"b": b"2", b"d/": b""}


@pytest.mark.parametrize(
    ("act", "options", "code", "reason", "hint"), REFUSALS, ids=[each[3] for each in REFUSALS]
)
def test_the_line_of_a_refusal(
    act: Callable[[Program], Any], options: dict[str, Any], code: str, reason: str, hint: str
) -> None:
    """A refusal is a warning that says what to do."""
    with mounted(OBJECTS, **options) as world:
        answered, line = said(Program(world), act)
    assert answered == code
    assert reason in line["reason"]
    assert hint in line["hint"]


@pytest.mark.parametrize(("act", "options", "code", "reason", "hint"), STAGED_REFUSALS)
def test_the_line_of_a_refusal_when_staged(
    act: Callable[[Program], Any],
    options: dict[str, Any],
    code: str,
    reason: str,
    hint: str,
    tmp_path: Path,
) -> None:
    """The same with staged writes."""
    area = StagingArea(str(tmp_path), "bucket", None)
    with mounted(OBJECTS, staging=area, staging_directory=str(tmp_path), **options) as world:
        answered, line = said(Program(world), act)
    area.close()
    assert (answered, reason in line["reason"], hint in line["hint"]) == (code, True, True)
