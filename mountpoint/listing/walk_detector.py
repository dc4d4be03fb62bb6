"""Detect programs that walk through a tree. Pure: no clock, no requests.

`find`, `du`, `rsync` and `os.walk` read a directory and then open its subdirectories in listed
order, one after another or each with everything below it. A process that does so several times
within a second is walking. One that lists a directory and then another is not, and neither is a
shell that starts an `ls` for each.
"""

from bisect import bisect_left
from collections import OrderedDict, deque

#: A walk has this many directories opened in order, within WITHIN_S seconds.
FEW_STEPS = 3
WITHIN_S = 1.0
#: Directories whose subdirectories are remembered: enough for the depth of a tree.
MAX_LISTED = 64


class WalkDetector:
    """The directories that one process has listed and opened.

    `top` is where the walk began: every directory opened since is below it.
    """

    def __init__(self) -> None:
        self.top = b""
        self._listed: OrderedDict[bytes, _Children] = OrderedDict()  # last used last
        self._steps_s: deque[float] = deque(maxlen=FEW_STEPS)

    def listed(self, directory: bytes, children: list[bytes]) -> None:
        """Add a directory's next subdirectories, as prefixes in listed order."""
        if not children:
            return
        known = self._listed.setdefault(directory, _Children())
        if not known.prefixes or children[0] > known.prefixes[-1]:
            known.prefixes += children
        else:  # the process lists the directory again
            self._listed[directory] = _Children(children)
        self._listed.move_to_end(directory)
        if len(self._listed) > MAX_LISTED:
            self._listed.popitem(last=False)

    def opened(self, directory: bytes, now_s: float) -> bool:
        """Record that a directory is opened; return whether this is a step of a walk.

        Opening one twice in a row, as `glob` does, is no step and does not end the walk.
        """
        parent = self._listed.get(_parent(directory))
        if parent is not None and parent.is_last(directory):
            pass
        elif parent is not None and parent.step_to(directory):
            self._listed.move_to_end(_parent(directory))
            self._steps_s.append(now_s)
        else:
            self._listed.clear()
            self._steps_s.clear()
            self.top = directory
            return False
        return len(self._steps_s) == FEW_STEPS and now_s - self._steps_s[0] < WITHIN_S

    def next_after(self, directory: bytes, count: int) -> list[bytes]:
        """Return the next siblings of a directory."""
        parent = self._listed.get(_parent(directory))
        if parent is None:
            return []
        index = bisect_left(parent.prefixes, directory) + 1
        return parent.prefixes[index : index + count]


class _Children:
    """Subdirectories in order, and how far they have been opened."""

    def __init__(self, prefixes: list[bytes] | None = None) -> None:
        self.prefixes = prefixes or []
        self._last = b""

    def is_last(self, directory: bytes) -> bool:
        """Whether `directory` was opened last."""
        return directory == self._last

    def step_to(self, directory: bytes) -> bool:
        """Record that one is opened; return whether it is a subdirectory after the last one."""
        index = bisect_left(self.prefixes, directory)
        if directory <= self._last or self.prefixes[index : index + 1] != [directory]:
            return False
        self._last = directory
        return True


def _parent(directory: bytes) -> bytes:
    return directory[: directory.rfind(b"/", 0, -1) + 1]
