"""Which lines are logged: the text of MOUNTPOINT_LOG, as levels per target.

Pure. A target is a logger's name, such as `mountpoint.read` or `awscrt`, and stands for
all loggers below it. The syntax is the level part of the reference's (doc/LOGGING.md there):
`debug`, `awscrt=warn`, or several of them with commas between.
"""

import logging
import re
from dataclasses import dataclass, field

from mountpoint.errors import MountError

#: More than `logging.DEBUG`: only the CRT has so much to say.
TRACE = 5
#: Above every level.
OFF = logging.CRITICAL + 10

LEVELS = {
    "off": OFF,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}

#: "::" separates the parts of the reference's names: its users' filters stay valid, without
#: effect on loggers that are not here.
TARGET = re.compile(r"\w+((\.|::)\w[\w-]*)*")


@dataclass(frozen=True, slots=True)
class Filter:
    """Levels per target; `default` is for all that no target names."""

    default: int
    targets: dict[str, int] = field(default_factory=dict)

    def level(self, name: str) -> int:
        """Return the level of the logger `name`: its longest target's."""
        while name:
            if name in self.targets:
                return self.targets[name]
            name = name.rpartition(".")[0]
        return self.default

    def most_verbose(self, name: str) -> int:
        """Return the lowest level of the logger `name` and those below it."""
        below = [level for target, level in self.targets.items() if target.startswith(name + ".")]
        return min([self.level(name), *below])


def parse_filter(text: str) -> Filter:
    """Parse MOUNTPOINT_LOG. Raise MountError that names the part which makes no sense.

    A bare level is for all targets, the CRT's too. Without one, those that are not named stay
    as they are by default: asking for more of one must not hide the failures of another. (The
    reference turns them off.)
    """
    bare: int | None = None
    targets: dict[str, int] = {}
    for part in text.split(","):
        target, equals, name = (word.strip() for word in part.rpartition("="))
        level = LEVELS.get(name.lower())
        if not part.strip():
            continue
        if level is None or (equals and not TARGET.fullmatch(target)):
            raise MountError(
                f"MOUNTPOINT_LOG: cannot understand '{part.strip()}'",
                "it takes LEVEL or TARGET=LEVEL, with commas between; "
                "levels are off, error, warn, info, debug, trace",
            )
        if equals:
            targets[target] = level
        else:
            bare = level
    if bare is None:
        return Filter(logging.WARNING, {"awscrt": OFF, **targets})
    return Filter(bare, targets)
