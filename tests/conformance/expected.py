"""What is expected of each case, and where it stands: `expected.toml`.

A group of the list names cases by patterns (fnmatch), and the reason why all of them fail. A case
that no group names must pass or be skipped.
"""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from tests.conformance.suites import Case

LIST = Path(__file__).with_name("expected.toml")


@dataclass(frozen=True)
class Group:
    """Cases that fail for one reason. `on`: only on this mount; `varies`: some runs pass."""

    reason: str
    suite: str
    cases: tuple[str, ...]
    on: str = ""
    varies: bool = False

    def names(self, case: str) -> bool:
        """Whether a pattern matches the case."""
        return any(fnmatchcase(case, pattern) for pattern in self.cases)


@dataclass
class Result:
    """One suite on one mount, compared with the list."""

    suite: str
    mount: str
    seconds: float
    cases: int = 0
    passed: int = 0
    varied: int = 0
    skipped: int = 0
    #: Cases that failed as expected, for each reason.
    expected: dict[str, int] = field(default_factory=dict)
    #: What is not as expected, in words.
    problems: list[str] = field(default_factory=list)


def read_list(path: Path = LIST) -> list[Group]:
    """Return the groups of the list."""
    rows = tomllib.loads(path.read_text())["group"]
    return [Group(**row | {"cases": tuple(row["cases"])}) for row in rows]


def compare(
    suite: str, mount: str, seconds: float, cases: Iterable[Case], groups: Iterable[Group]
) -> Result:
    """Compare the cases of a suite with the groups that concern it."""
    result = Result(suite, mount, seconds)
    groups = [group for group in groups if group.suite == suite and group.on in ("", mount)]
    unused = {pattern for group in groups for pattern in group.cases}
    for case in cases:
        result.cases += 1
        here = [group for group in groups if group.names(case.name)]
        unused = {pattern for pattern in unused if not fnmatchcase(case.name, pattern)}
        if case.outcome == "skipped":
            result.skipped += 1
        elif any(group.varies for group in here):
            result.varied += 1
        elif case.outcome == "failed" and here:
            reason = here[0].reason
            result.expected[reason] = result.expected.get(reason, 0) + 1
        elif case.outcome == "failed":
            result.problems.append(f"{case.name} failed: {case.detail}")
        elif here:
            result.problems.append(f"{case.name} passed, but the list says: {here[0].reason}")
        else:
            result.passed += 1
    result.problems += [f"{pattern} names no case" for pattern in sorted(unused)]
    return result
