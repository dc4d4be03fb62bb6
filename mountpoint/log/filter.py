"""Log levels per target, from the text of MOUNTPOINT_LOG. Pure.

A target is a logger's name, such as `mountpoint.read` or `awscrt`, and includes all loggers below
it. The syntax is the level part of that of AWS's mount-s3 (doc/LOGGING.md there): `debug`,
`awscrt=warn`, or several of these separated by commas.
"""

import logging
import re
from dataclasses import dataclass, field

from mountpoint.errors import MountError

#: Below `logging.DEBUG`: only the CRT logs at this level.
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

#: "::" separates the parts of target names in AWS's mount-s3. Its users' filters stay valid, but
#: have no effect on loggers that do not exist here.
TARGET = re.compile(r"\w+((\.|::)\w[\w-]*)*")


@dataclass(frozen=True, slots=True)
class Filter:
    """Levels per target; `default` is for all other loggers."""

    default: int
    targets: dict[str, int] = field(default_factory=dict)

    def level(self, name: str) -> int:
        """Return the level of the logger `name`: that of the longest target that includes it."""
        while name:
            if name in self.targets:
                return self.targets[name]
            name = name.rpartition(".")[0]
        return self.default

    def most_verbose(self, name: str) -> int:
        """Return the lowest level of the logger `name` and all loggers below it."""
        below = [level for target, level in self.targets.items() if target.startswith(name + ".")]
        return min([self.level(name), *below])


def parse_filter(text: str) -> Filter:
    """Parse MOUNTPOINT_LOG. Raises MountError that names the invalid part.

    A bare level is for all targets, including the CRT's. Without one, targets that are not named
    keep their default: more lines from one target must not hide the failures of another. (AWS's
    mount-s3 turns them off.)
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
                "use LEVEL or TARGET=LEVEL, separated by commas; "
                "levels are off, error, warn, info, debug, trace",
            )
        if equals:
            targets[target] = level
        else:
            bare = level
    if bare is None:
        return Filter(logging.WARNING, {"awscrt": OFF, **targets})
    return Filter(bare, targets)
