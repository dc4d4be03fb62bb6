"""The progress of an unmount, on terminals of any width and elsewhere."""

import io
from typing import Any

import pytest

from mountpoint.ctl import progress
from mountpoint.ctl.progress import LINE_S, Bar, Progress, SentBytes
from mountpoint.ctl.terminal import fit, width_of
from tests.terminal import TERM, terminal


@pytest.fixture(autouse=True)
def _term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", TERM)


def writing(path: str, size: int, pending: int) -> dict[str, Any]:
    """Return a file as the mount describes it."""
    return {"path": path, "size_bytes": size, "pending_bytes": pending}


def steps(path: str = "/a/file") -> list[list[dict[str, Any]]]:
    """Return a mount's answers while one file grows and is uploaded."""
    return [[writing(path, 10**7 * n, 10**7 * (10 - n))] for n in range(6, 11)]


@pytest.mark.parametrize("columns", [20, 40, 79, 80, 81, 200])
@pytest.mark.parametrize("path", ["/a/file", "/" + "long/" * 40, "/" + "日本語" * 30])
def test_one_line_is_drawn_again(columns: int, path: str) -> None:
    """One line is redrawn, with any width of the terminal and any file name."""
    with terminal(columns) as screen:
        shown = Progress(screen.stream)
        for each in steps(path):
            shown.show(each)
            assert len(screen.lines) == 1, screen.text
        shown.done()
        (line,) = screen.lines
        assert "100 %" in line


def test_progress_shows_share_and_bytes() -> None:
    """A bar, a percentage and bytes; the cursor is on a free line at the end."""
    with terminal(80) as screen:
        shown = Progress(screen.stream)
        shown.show([writing("/a/file", 40_000_000, 30_000_000)])
        bar = "#" * 8 + "-" * 25
        assert screen.lines == [f"Waiting for /a/file  [{bar}]   25 %  10 MB of 40 MB"]
        shown.done()
        screen.stream.write("next\n")
        screen.stream.flush()
        assert screen.lines[0].endswith("100 %  40 MB of 40 MB")
        assert screen.lines[1] == "next"


def test_narrow_terminals_lose_the_bar_first() -> None:
    """A narrow terminal first loses the bar, then the end of the name, the bytes, and the name."""
    with terminal(50) as screen:
        shown = Progress(screen.stream)
        shown.show([writing("/a/file", 40_000_000, 30_000_000)])
        assert screen.lines == ["Waiting for /a/file   25 %  10 MB of 40 MB"]
        for columns, line in [
            (40, "Waiting for /a/…   25 %  10 MB of 40 MB"),
            (30, "Waiting for /a/file   25 %"),
            (20, "Waiting for…   25 %"),
            (10, "25 %"),
        ]:
            screen.resize(columns, 24)
            shown.show([writing("/a/file", 40_000_000, 30_000_000)])
            assert screen.lines == [line], columns


def test_a_terminal_that_is_resized() -> None:
    """The next step has the new width, and no part of the old line is left."""
    with terminal(120) as screen:
        shown = Progress(screen.stream)
        for columns in (120, 60, 100, 30, 80):
            screen.resize(columns, 24)
            shown.show([writing("/a/file", 40_000_000, 30_000_000)])
            assert len(screen.lines) == 1, screen.text
            assert screen.text.count("25 %") == 1
            # At first the cursor stays in the first row of a line that is broken into rows.
            assert screen.output.endswith(b"\x1b[J\r")


def test_the_share_never_decreases() -> None:
    """The share does not decrease if files grow or start, and is complete only at the end."""
    sent = SentBytes()
    shares = []
    for each in [
        [writing("/a", 100, 50)],
        [writing("/a", 1000, 900)],
        [writing("/a", 1000, 0)],
        [writing("/a", 1000, 0), writing("/b", 4000, 4000)],
        [writing("/b", 4000, 0)],
    ]:
        sent.note(each)
        shares.append(sent.share)
    assert shares == sorted(shares)
    assert shares[0] == 0.5
    assert shares[-1] < 1
    assert (sent.sent_bytes, sent.total_bytes) == (5000, 5000)
    sent.finish()
    assert sent.share == 1


def test_a_pipe_gets_a_line_at_intervals() -> None:
    """One line at the start, one at intervals, one at the end; no control characters."""
    stream, now_s = io.StringIO(), 100.0
    shown = Progress(stream, lambda: now_s)
    for pending in (90, 80, 70, 60):
        shown.show([writing("/a", 100, pending)])
        now_s += LINE_S / 2
    shown.done()
    shown.done()
    assert stream.getvalue().splitlines() == [
        "Waiting for /a: 10 %, 10 B of 100 B",
        "Waiting for /a: 30 %, 30 B of 100 B",
        "Everything is in S3: 100 B of 100 B",
    ]


def test_a_dumb_terminal_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dumb terminal cannot redraw a line, so it counts as none."""
    monkeypatch.setenv("TERM", "dumb")
    with terminal() as screen:
        shown = Progress(screen.stream)
        shown.show([writing("/a", 100, 90)])
        assert screen.lines == ["Waiting for /a: 10 %, 10 B of 100 B"]
        assert b"\x1b" not in screen.output


def test_nothing_is_written_when_nothing_is_waited_for() -> None:
    """Without a wait no progress is shown."""
    stream = io.StringIO()
    shown = Progress(stream)
    shown.done()
    shown.leave()
    assert stream.getvalue() == ""


def test_many_files() -> None:
    """Several files are shown as a number."""
    assert progress.files([writing("/a", 100, 0), writing("/b", 100, 0)]) == "2 files (200 B)"
    assert progress.files([writing("/\x1b[2J", 100, 0)]) == r"/\x1b[2J (100 B)"


@pytest.mark.parametrize(
    ("text", "width", "cut"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcd…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("e\u0301e\u0301", 2, "e\u0301e\u0301"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
    ],
)
def test_cut_to_columns(text: str, width: int, cut: str) -> None:
    """The width counts columns, not characters."""
    assert fit(text, width) == cut
    assert width_of(cut) <= width


def test_notes_stay_above_the_line() -> None:
    """A note replaces the line, which is drawn again below it; elsewhere it is one more line."""
    with terminal(80) as screen:
        bar = Bar(screen.stream)
        bar.note("first")
        bar.show("Warming 10 files", 0.5, "5 kB of 10 kB")
        bar.note("/a: gone")
        bar.show("Warming 11 files", 0.6, "6 kB of 10 kB")
        assert screen.lines[:2] == ["first", "/a: gone"]
        assert screen.lines[2].startswith("Warming 11 files  [")
        assert len(screen.lines) == 3
    stream = io.StringIO()
    bar = Bar(stream)
    bar.show("Warming 10 files", 0.5, "5 kB of 10 kB")
    bar.note("/a: gone")
    bar.leave()
    assert stream.getvalue() == "Warming 10 files: 50 %, 5 kB of 10 kB\n/a: gone\n"
