"""`mount-s3ctl log`: formatted lines, original lines, JSON, and how it ends."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mountpoint.ctl import main, mounts
from mountpoint.log.format import console_line, field_line, parsed
from tests.terminal import terminal

ROOT = Path(__file__).parents[3]
EVENT_S = 1795421910.5
EVENT = {
    "timestamp": EVENT_S,
    "level": "warning",
    "logger": "mountpoint.fuse.operations",
    "event": 'it "failed"',
    "path": "/a file",
    "errno": "EPERM",
}
LINES = [[1, field_line(EVENT)], [2, field_line({**EVENT, "level": "error", "path": "/b"})]]

TEXT = st.text().map(lambda text: text.translate(dict.fromkeys(range(128, 160))))
NAME = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)


@given(st.dictionaries(NAME, TEXT.filter(bool)), TEXT)
def test_lines_are_read_as_they_were_written(fields: dict[str, str], text: str) -> None:
    """Lines with any content are parsed as they were written."""
    event = {"timestamp": 1795421910.25, "level": "info", "logger": "x", **fields, "event": text}
    found = parsed(field_line(event))
    assert found == {name: value for name, value in event.items() if name != "exc_info"}


@given(st.text(), st.integers(0, 100))
def test_lines_that_were_cut(text: str, length: int) -> None:
    """Truncated lines are shown as far as possible, each on one line."""
    line = field_line({**EVENT, "path": text})[:length]
    assert "\n" not in console_line(parsed(line), colours=False)


def run_log(answers: list[list[Any]] | None = None) -> None:
    """Run the command for a mount that does not exist."""
    left = [*(answers or [LINES])]

    def ask(command: str, **request: int) -> dict[str, Any]:
        assert command == "log"
        return {"lines": left.pop(0) if left else []}

    found = SimpleNamespace(directory="/mnt", ask=ask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mounts, "answering", lambda environ: [found])
        main.main(["log", "/mnt", *sys.argv[1:]])


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run it with its output in a pipe; return the output."""
    found = SimpleNamespace(directory="/mnt", ask=lambda command: {"lines": LINES})
    monkeypatch.setattr(mounts, "answering", lambda environ: [found])
    result = CliRunner().invoke(main.main, ["log", "/mnt", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_pipe_gets_the_lines_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets the original lines, for programs that read a mount's logs."""
    assert run(monkeypatch=monkeypatch).splitlines() == [line for _, line in LINES]
    assert run("-n", "1", monkeypatch=monkeypatch).splitlines() == [LINES[1][1]]
    assert run("-n", "0", monkeypatch=monkeypatch) == ""


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object per line: the common fields, and the event's own."""
    first = json.loads(run("--json", monkeypatch=monkeypatch).splitlines()[0])
    assert first == {
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S.500000Z", time.gmtime(EVENT_S)),
        "level": "warning",
        "logger": "mountpoint.fuse.operations",
        "event": 'it "failed"',
        "exception": "",
        "fields": {"path": "/a file", "errno": "EPERM"},
    }


@pytest.mark.slow
def test_a_terminal_and_ctrl_c() -> None:
    """Date, coloured level, message, fields, no broken words; follows until Ctrl-C, silently."""
    script = "from tests.unit.ctl.test_log import run_log; run_log()"
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environ |= {"PYTHONPATH": str(ROOT), "TZ": "UTC"}
    with terminal(80) as screen:
        program = screen.run([sys.executable, "-c", script, "-f"], environ)
        screen.until(lambda text: text.count("errno=EPERM") == 2)
        shown = screen.lines
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(EVENT_S))
        assert shown == [
            f'{clock} WARNING  mountpoint.fuse.operations: it "failed"',
            '    path="/a file" errno=EPERM',
            f'{clock} ERROR    mountpoint.fuse.operations: it "failed"',
            "    path=/b errno=EPERM",
        ]
        assert b"\x1b[33mWARNING" in screen.output
        screen.type(b"\x03")
        assert screen.wait(program) == 0
        assert [line for line in screen.lines[4:] if line != "^C"] == []
