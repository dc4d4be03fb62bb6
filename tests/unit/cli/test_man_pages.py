"""The man pages match the help, and man accepts them without a warning."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from mountpoint.cli import main as cli
from mountpoint.cli.command import EPILOG
from mountpoint.ctl import main as ctl
from tools import man_pages

NAMES = ["mount-s3.1", "mount-s3ctl.1"]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The generated pages."""
    return man_pages.pages()


def printed(source: str) -> str:
    """Return the rendered page in one line, without any warning."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed (Debian: groff-base)")
    command = ["groff", "-ww", "-man", "-Tutf8", "-P-cbou", "-rLL=2000n"]
    result = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return " ".join(result.stdout.split()).replace("\N{HYPHEN}", "-")


def test_current(pages: dict[str, str]) -> None:
    """The pages are in the repository, so that the installation does not generate them."""
    kept = {path.name: path.read_text() for path in man_pages.DIRECTORY.iterdir()}
    assert kept == pages, f"docs/man is old: run {man_pages.REGENERATE}"


def test_installed() -> None:
    """A wheel installs them where man looks."""
    settings = tomllib.loads((man_pages.DIRECTORY.parents[1] / "pyproject.toml").read_text())
    files = settings["tool"]["setuptools"]["data-files"]["share/man/man1"]
    assert files == [f"docs/man/{name}" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_taken_by_groff(pages: dict[str, str], name: str) -> None:
    """All sections exist, and groff has no warning."""
    text = printed(pages[name])
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"):
        assert f" {heading} " in text


@pytest.mark.parametrize("name", NAMES)
def test_taken_by_mandoc(pages: dict[str, str], name: str, tmp_path: Path) -> None:
    """mandoc is stricter: it has not even advice on style."""
    mandoc = shutil.which("mandoc")
    if mandoc is None:
        pytest.skip("mandoc is not installed")
    page = tmp_path / name
    page.write_text(pages[name])
    command = [mandoc, "-Tlint", "-Wstyle", str(page)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("name", "command"), [("mount-s3.1", cli.main), ("mount-s3ctl.1", ctl.main)]
)
def test_nothing_is_left_out(pages: dict[str, str], name: str, command: click.Command) -> None:
    """Every option of every command is included with its help, and so are the other texts."""
    text = printed(pages[name])
    context = click.Context(command, info_name=name)
    commands = [command]
    if isinstance(command, click.Group):
        for called in command.list_commands(context):
            inner = command.get_command(context, called)
            assert inner is not None
            assert f" {called.upper()} mount-s3ctl {called} " in text
            commands.append(inner)
    for each in commands:
        for option in each.get_params(context):
            record = option.get_help_record(context)
            if record is not None:
                assert f"{record[0]} {' '.join(record[1].split())}" in text
    shown = re.sub(r"\x08", "", EPILOG if name == "mount-s3.1" else "")
    assert " ".join(shown.split()) in text


@pytest.mark.parametrize(
    "text",
    [
        "'minimal' begins a line, and a quote is no command",
        ".dots do not either",
        "a backslash \\ and \\fB no font",
        'double "quotes" stay',
        "--an-option and a-word",
        "é and ’",
        " ".join(f"'{number}.'" for number in range(60)),
    ],
)
def test_any_text(text: str) -> None:
    """The page shows any help text unchanged."""
    head = ".TH X 1 2026-01-01 x x\n.SH NAME\nx \\- x\n.SH Y\n"
    for code in (False, True):
        page = head + man_pages.escaped(text, code=code) + "\n"
        assert f" Y {text} x 2026" in printed(page)


def test_in_quotes() -> None:
    """A heading shows any text unchanged."""
    text = r'a "b" \ c-d'
    page = f".TH X 1 2026-01-01 x x\n.SH {man_pages.quoted(text)}\nz\n"
    assert f" {text} z " in printed(page)
