"""What the documents quote of the program is what it says."""

import ast
import functools
import re
from pathlib import Path

import pytest

import mountpoint

SOURCE = Path(mountpoint.__file__).parent
TROUBLESHOOTING = SOURCE.parent / "docs" / "troubleshooting.md"
#: The first cell of a row.
MESSAGE = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


@functools.cache
def texts() -> str:
    """Return all literal text of the program, "…" where something is put in."""
    found = []
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
    """Each message that is explained is one of the program's."""
    assert message in texts()


def test_there_are_some() -> None:
    """The tables are read at all."""
    assert len(quoted()) > 25
