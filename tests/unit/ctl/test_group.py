"""How commands of `mount-s3ctl` end: exit codes, and errors as text and as JSON."""

import json

import click
import pytest
from click.testing import CliRunner

from mountpoint.ctl.group import Group, json_option, write_json
from mountpoint.errors import MountError


@click.group(cls=Group)
def group() -> None:
    """Commands with all kinds of ends."""


@group.command()
@click.argument("how")
@click.option("--number", type=int)
@json_option
def end(how: str, number: int | None, as_json: bool) -> None:
    """End in the given way."""
    if how == "refused":
        raise MountError("it cannot\x1b be done", "do another thing")
    if how == "refused shortly":
        raise MountError("it cannot be done")
    if how == "interrupted":
        raise KeyboardInterrupt
    if how == "asked":
        click.confirm("Really?", abort=True)
    write_json({"how": how})


def run(*arguments: str) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output, standard error."""
    result = CliRunner().invoke(group, ["end", *arguments], prog_name="ctl")
    return result.exit_code, result.stdout, result.stderr


def test_success() -> None:
    """The result is on standard output."""
    assert run("well", "--json") == (0, '{"how": "well"}\n', "")


def test_errors_as_text() -> None:
    """The message, then the hint, without characters that control a terminal."""
    assert run("refused") == (1, "", "Error: it cannot\\x1b be done\ndo another thing\n")
    assert run("refused shortly") == (1, "", "Error: it cannot be done\n")


def test_errors_as_json() -> None:
    """One object on standard error, and nothing on standard output."""
    code, out, err = run("refused", "--json")
    assert (code, out) == (1, "")
    assert json.loads(err) == {
        "error": "it cannot\x1b be done",
        "hint": "do another thing",
        "exit_code": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["well", "--bad"], "No such option"),
        (["well", "--number", "x"], "not a valid integer"),
        ([], "Missing argument"),
    ],
)
def test_misuse(arguments: list[str], said: str) -> None:
    """An invalid command line has exit code 2, and is JSON with --json."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Usage:" in err
    code, out, err = run(*arguments, "--json")
    assert (code, out) == (2, "")
    error = json.loads(err)
    assert said in error["error"]
    assert error["exit_code"] == 2


@pytest.mark.parametrize("how", ["interrupted", "asked"])
def test_ctrl_c(how: str) -> None:
    """Ctrl-C has exit code 130, without a message."""
    code, out, err = run(how)
    assert code == 130
    assert "Abort" not in out + err
    assert err == ""
