"""`make mutations`: caught and surviving mutations, and wrong rows."""

import ast
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tools.mutations.__main__ import ROOT, BadRow, Mutation, main, read_list

ADDS = Mutation(
    "adds", "product.py", "a + b", "a - b", "test_product.py::test_it"
)  # the test notices this one
SHIFTED = replace(ADDS, name="shifted", old="a + b", new="a + b + 0")
MISSING = replace(ADDS, name="missing", old="a * b")
NO_TEST = replace(ADDS, name="no-test", test="test_product.py::test_other")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one module and its test."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "product.py").write_text("def add(a, b):\n    return a + b\n")
    (tree / "test_product.py").write_text(
        "from product import add\n\ndef test_it():\n    assert add(1, 2) == 3\n"
    )
    subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
    return tree


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "code", "said"),
    [
        ([ADDS], 0, ["caught    adds"]),
        ([ADDS, SHIFTED], 1, ["caught    adds", "survived  shifted"]),
        ([MISSING], 1, ["wrong: product.py has the old text 0 times, not once  missing"]),
    ],
)
def test_verdicts(
    tree: Path, capsys: pytest.CaptureFixture[str], rows: list[Mutation], code: int, said: list[str]
) -> None:
    """One line for each mutation, in order. The exit code is 1 unless all are caught."""
    before = (tree / "product.py").read_text()
    assert main([], tree, rows) == code
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  product.py")[0].rstrip() for line in lines] == said
    caught = sum(line.startswith("caught") for line in lines)
    assert summary == f"{caught} of {len(rows)} mutations caught"
    assert (tree / "product.py").read_text() == before
    assert not any(tree.rglob("*.pyc"))


@pytest.mark.slow
def test_tests_that_do_not_pass(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A test that is missing, or that fails without a mutation, proves nothing."""
    assert main([], tree, [ADDS, NO_TEST]) == 1
    assert "Without a mutation these tests have to pass" in capsys.readouterr().out


@pytest.mark.slow
def test_names(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the named mutations are tried; an unknown name is an error."""
    assert main(["adds"], tree, [ADDS, SHIFTED]) == 0
    assert "1 of 1 mutations caught" in capsys.readouterr().out
    assert main(["other"], tree, [ADDS]) == 2
    assert capsys.readouterr().out == "there is no mutation other\n"


def test_old_text_that_is_there_twice(tree: Path) -> None:
    """Then it is unclear which place is meant."""
    with pytest.raises(BadRow, match="2 times"):
        replace(ADDS, old="b").apply(tree)


@pytest.mark.parametrize("row", read_list(), ids=lambda row: row.name)
def test_the_list(row: Mutation) -> None:
    """Each row changes one place of a file to valid Python, and names a test."""
    text = (ROOT / row.file).read_text()
    assert text.count(row.old) == 1
    ast.parse(text.replace(row.old, row.new))
    path, _, name = row.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text()
