"""Show the progress of a command, such as how much of the files being written is in S3.

On a terminal it is one line, redrawn at each step, that fits the terminal's width. Elsewhere it is
a line at the start, one every `LINE_S` seconds, and one at the end.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from mountpoint.ctl import terminal
from mountpoint.ctl.words import size
from mountpoint.errors import MountError
from mountpoint.log.format import printable

LINE_S = 30.0
#: The cursor waits at the start of the line, and everything below is cleared: a terminal that gets
#: narrower breaks the line into rows, and the cursor stays in the first of them.
CLEAR_BELOW, TO_BEGINNING = "\x1b[J", "\r"
MIN_BAR, MAX_BAR = 10, 40
#: The minimum width of a file name; a shorter one would say nothing.
MIN_LABEL = 12
#: The share shown for a file whose bytes are all in S3, but which is not closed.
ALMOST = 0.99

#: A file as `ControlCommands.status` describes it.
Writing = Mapping[str, Any]


class SentBytes:
    """Counts the bytes in S3 of all files seen so far. The share never decreases.

    A file that is no longer listed is completely in S3. The total grows while programs write; the
    share then stays until the true one has reached it again. It is 1 only after `finish`.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self.sent_bytes = 0
        self.total_bytes = 0
        self.share = 0.0

    def note(self, writing: Sequence[Writing]) -> None:
        """Record the files that are being written now."""
        self._sizes.update({each["path"]: each["size_bytes"] for each in writing})
        self.total_bytes = sum(self._sizes.values())
        self.sent_bytes = self.total_bytes - sum(each["pending_bytes"] for each in writing)
        if self.total_bytes:
            self.share = max(self.share, min(self.sent_bytes / self.total_bytes, ALMOST))

    def finish(self) -> None:
        """Record that all files are in S3."""
        self.sent_bytes, self.share = self.total_bytes, 1.0


class Progress:
    """Progress of uploads on a stream (None: nowhere): `show` at each step, `done` or `leave`."""

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar = Bar(stream, clock)
        self._label = ""
        self._sent: SentBytes | None = None  # from the first `show` to the end

    def show(self, writing: Sequence[Writing]) -> None:
        """Show how much of these and earlier files is in S3."""
        if self._sent is None:
            self._sent = SentBytes()
        self._sent.note(writing)
        self._label = f"Waiting for {_name(writing)}"
        self._bar.show(self._label, self._sent.share, _figures(self._sent))

    def done(self) -> None:
        """Show that everything is in S3, if anything was shown."""
        if self._sent is not None:
            self._sent.finish()
            self._bar.done(self._label, "Everything is in S3", _figures(self._sent))
            self._sent = None

    def leave(self) -> None:
        """Leave the line as it is."""
        self._bar.leave()
        self._sent = None


class Bar:
    """A line of progress on a stream (None: nowhere)."""

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        # dependencies
        self._stream = stream
        self._clock = clock
        # constants
        self._redraws = stream is not None and terminal.can_redraw(stream)
        # mutable
        self._drawn = False
        self._next_line_s = 0.0

    def show(self, label: str, share: float, figures: str) -> None:
        """Show what is being done, the share that is done, and figures."""
        if self._redraws:
            self._draw(label, share, figures)
        elif self._clock() >= self._next_line_s:
            self._next_line_s = self._clock() + LINE_S
            self._write(f"{label}: {_percent(share).strip()}, {figures}\n")

    def done(self, label: str, all_done: str, figures: str) -> None:
        """Show that all is done: in the line of `label`, or elsewhere as a line that says so."""
        if self._redraws:
            self._draw(label, 1.0, figures)
            self.leave()
        else:
            self._write(f"{all_done}: {figures}\n")
            self._next_line_s = 0.0

    def note(self, text: str) -> None:
        """Write a line of its own; the next `show` draws below it."""
        self._write(f"{text}{CLEAR_BELOW if self._drawn else ''}\n")
        self._drawn = False

    def leave(self) -> None:
        """Leave the line as it is."""
        if self._drawn:
            self._write("\n")
        self._drawn, self._next_line_s = False, 0.0

    def _draw(self, label: str, share: float, figures: str) -> None:
        assert self._stream is not None
        # Leave the last column free: some terminals wrap when it is written.
        width = terminal.columns(self._stream) - 1
        self._write(f"{line(label, share, figures, width)}{CLEAR_BELOW}{TO_BEGINNING}")
        self._drawn = True

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


def files(writing: Sequence[Writing]) -> str:
    """Return the name of one file, or the number of files, with their size."""
    return f"{_name(writing)} ({size(sum(each['size_bytes'] for each in writing))})"


def still_written(directory: str, writing: Sequence[Writing]) -> MountError:
    """Return the error for a mount whose files were written for longer than one may wait."""
    return MountError(
        f"'{directory}' is still being written to: {files(writing)}",
        "wait longer with --timeout, or stop the writing program",
    )


def _name(writing: Sequence[Writing]) -> str:
    return printable(writing[0]["path"]) if len(writing) == 1 else f"{len(writing)} files"


def line(label: str, share: float, figures: str, width: int) -> str:
    """Return the line: percentage, then figures, label and bar as far as they fit."""
    percent = _percent(share)
    tail = f"{percent}  {figures}"
    room = width - len(tail) - 2
    if room < MIN_LABEL:
        room = width - len(percent) - 2
        if room < MIN_LABEL:
            return terminal.fit(percent.strip(), width)
        return _beside(label, percent, room)
    bar_width = min(room - terminal.width_of(label) - 2, MAX_BAR)
    if bar_width < MIN_BAR:
        return _beside(label, tail, room)
    done = int(share * (bar_width - 2))
    return f"{label}  [{'#' * done}{'-' * (bar_width - 2 - done)}]  {tail}"


def _beside(label: str, tail: str, room: int) -> str:
    return f"{terminal.fit(label, room)}  {tail}"


def _percent(share: float) -> str:
    return f"{int(share * 100):3} %"


def _figures(sent: SentBytes) -> str:
    return f"{size(sent.sent_bytes)} of {size(sent.total_bytes)}"
