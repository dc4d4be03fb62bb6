"""What `make soak` runs, and the table at its end (a plugin of pytest).

Only modules with random cases run: a soak repeats nothing that is the same each time. A test has
as many cases as it counts (`soak.count_cases`), or as hypothesis has tried, or one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests import soak

#: A module that imports one of these has random cases.
SOURCES = re.compile(
    r"^(from|import) (tests\.soak|tests import soak|hypothesis|tests\.unit\.interleaving"
    r"|tests\.unit\.patterns)",
    re.MULTILINE,
)
#: In the statistics of hypothesis: the examples of each phase.
EXAMPLES = re.compile(r"(\d+) passing")


@dataclass
class Row:
    """The tests of one file."""

    tests: int = 0
    cases: int = 0
    seconds: float = 0.0
    failed: int = 0

    def add(self, other: "Row") -> None:
        """Add another row to this one."""
        self.tests += other.tests
        self.cases += other.cases
        self.seconds += other.seconds
        self.failed += other.failed


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the modules with random cases."""
    random = {
        path: SOURCES.search(path.read_text()) is not None for path in {each.path for each in items}
    }
    config.hook.pytest_deselected(items=[each for each in items if not random[each.path]])
    items[:] = [each for each in items if random[each.path]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note how many cases a test has; pytest-xdist sends the number with its report."""
    before = soak.counted()
    try:
        return (yield)
    finally:
        statistics = str(getattr(item, "hypothesis_statistics", ""))
        examples = sum(int(each) for each in EXAMPLES.findall(statistics))
        cases = (soak.counted() - before) or examples or 1
        item.user_properties.append(("cases", cases))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print a row for each file, and the sum."""
    rows: dict[str, Row] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            row = rows.setdefault(report.nodeid.partition("::")[0], Row())
            called = report.when == "call"
            cases = dict(report.user_properties).get("cases", 0) if called else 0
            row.add(Row(int(called), cases, report.duration, int(outcome != "passed")))
    total = Row()
    for row in rows.values():
        total.add(row)
    terminalreporter.section(f"soak: {soak.FACTOR:g} times as many cases, seed {soak.SEED}")
    width = max((len(path) for path in rows), default=0)
    terminalreporter.write_line(f"{'':{width}}  tests    cases  seconds  failed")
    for path, row in [*sorted(rows.items()), ("all", total)]:
        terminalreporter.write_line(
            f"{path:{width}}  {row.tests:5}  {row.cases:7,}  {row.seconds:7,.0f}  {row.failed:6}"
        )
