"""Show how much of the files being written is in S3.

On a terminal it is one line, redrawn at each step, that fits the terminal's width. Elsewhere it is
a line at the start, one every `LINE_S` seconds, and one at the end.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from mountpoint.ctl import terminal
from mountpoint.ctl.words import size
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
    """Progress on a stream (None: nowhere): call `show` at each step, then `done` or `leave`."""

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        # dependencies
        self._stream = stream
        self._clock = clock
        # constants
        self._redraws = stream is not None and terminal.can_redraw(stream)
        # mutable: from the first `show` to the end
        self._sent: SentBytes | None = None
        self._label = ""
        self._next_line_s = 0.0

    def show(self, writing: Sequence[Writing]) -> None:
        """Show how much of these and earlier files is in S3."""
        if self._sent is None:
            self._sent, self._next_line_s = SentBytes(), 0.0
        self._sent.note(writing)
        self._label = f"Waiting for {_name(writing)}"
        if self._redraws:
            self._draw(self._sent)
        elif self._clock() >= self._next_line_s:
            self._next_line_s = self._clock() + LINE_S
            self._write(f"{self._label}: {_percent(self._sent).strip()}, {_figures(self._sent)}\n")

    def done(self) -> None:
        """Show that everything is in S3, if anything was shown."""
        if self._sent is None:
            return
        self._sent.finish()
        if self._redraws:
            self._draw(self._sent)
            self.leave()
        else:
            self._write(f"Everything is in S3: {_figures(self._sent)}\n")
            self._sent = None

    def leave(self) -> None:
        """Leave the line as it is."""
        if self._sent is not None and self._redraws:
            self._write("\n")
        self._sent = None

    def _draw(self, sent: SentBytes) -> None:
        assert self._stream is not None
        # Leave the last column free: some terminals wrap when it is written.
        width = terminal.columns(self._stream) - 1
        self._write(f"{line(self._label, sent, width)}{CLEAR_BELOW}{TO_BEGINNING}")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


def files(writing: Sequence[Writing]) -> str:
    """Return the name of one file, or the number of files, with their size."""
    return f"{_name(writing)} ({size(sum(each['size_bytes'] for each in writing))})"


def _name(writing: Sequence[Writing]) -> str:
    return printable(writing[0]["path"]) if len(writing) == 1 else f"{len(writing)} files"


def line(label: str, sent: SentBytes, width: int) -> str:
    """Return the line: percentage, then figures, label and bar as far as they fit."""
    percent = _percent(sent)
    tail = f"{percent}  {_figures(sent)}"
    room = width - len(tail) - 2
    if room < MIN_LABEL:
        room = width - len(percent) - 2
        if room < MIN_LABEL:
            return terminal.fit(percent.strip(), width)
        return _beside(label, percent, room)
    bar_width = min(room - terminal.width_of(label) - 2, MAX_BAR)
    if bar_width < MIN_BAR:
        return _beside(label, tail, room)
    done = int(sent.share * (bar_width - 2))
    return f"{label}  [{'#' * done}{'-' * (bar_width - 2 - done)}]  {tail}"


def _beside(label: str, tail: str, room: int) -> str:
    return f"{terminal.fit(label, room)}  {tail}"


def _percent(sent: SentBytes) -> str:
    return f"{int(sent.share * 100):3} %"


def _figures(sent: SentBytes) -> str:
    return f"{size(sent.sent_bytes)} of {size(sent.total_bytes)}"
