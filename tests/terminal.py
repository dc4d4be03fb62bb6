"""A pseudo terminal for a program, or for a stream of this process."""

import contextlib
import fcntl
import os
import select
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import pyte

#: pyte does not support all of xterm. This screen also has an alternate screen.
TERM = "screen"
ALTERNATE, NORMAL = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """A screen of a given size. `stream` writes to it, and `type` is its keyboard."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self._master, self._slave = os.openpty()
        self._screen = pyte.Screen(columns, rows)
        self._parser = pyte.ByteStream(self._screen)
        self.stream: TextIO = open(self._slave, "w", closefd=False)  # noqa: SIM115
        self.output = b""
        self._programs: list[subprocess.Popen[bytes]] = []
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        """Change the size, as a user may at any time."""
        termios.tcsetwinsize(self._slave, (rows, columns))
        self._screen.resize(rows, columns)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    @property
    def lines(self) -> list[str]:
        """The text on the screen, without empty lines at the end."""
        self._take()
        lines = [line.rstrip() for line in self._screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        """The text on the screen."""
        return "\n".join(self.lines)

    def until(self, condition: Callable[[str], object], within_s: float = 20.0) -> str:
        """Wait until the condition holds for the text; return the text."""
        deadline = time.monotonic() + within_s
        while not condition(text := self.text):
            assert time.monotonic() < deadline, f"this is shown:\n{text}"
            select.select([self._master], [], [], 0.2)
        return text

    def run(self, command: Sequence[str | Path], env: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start a program on the terminal; the keys send it signals."""
        program = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=env | {"TERM": TERM},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            cwd="/",
        )
        self._programs.append(program)
        return program

    def wait(self, program: "subprocess.Popen[bytes]", within_s: float = 20.0) -> int:
        """Wait until a program has ended, and read its output; return its exit code."""
        self.until(lambda _: program.poll() is not None, within_s)
        return program.returncode

    def close(self) -> None:
        """Close the terminal, and end its programs."""
        for program in self._programs:
            program.kill()
            program.wait()
        self.stream.close()
        os.close(self._slave)
        os.close(self._master)

    def _take(self) -> None:
        while select.select([self._master], [], [], 0)[0]:
            some = os.read(self._master, 1 << 16)
            self.output += some
            self._parser.feed(some)


@contextlib.contextmanager
def terminal(columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
    """Yield a terminal."""
    made = Terminal(columns, rows)
    try:
        yield made
    finally:
        made.close()
