"""The command line of `mount-s3ctl warm`, its lines of progress and failures, and exit codes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mountpoint.ctl import main, mounts
from mountpoint.ctl.warm import command
from mountpoint.ctl.warm.warming import Warming
from tests.unit.ctl.warm.fake_mount import MIB, FakeMount


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMount:
    """A mount of files, the only one."""
    fake = FakeMount(tmp_path.resolve(), {"a": 3 * MIB, "b/c": 1000}, monkeypatch)
    monkeypatch.setattr(mounts, "answering", lambda environ: [fake])
    return fake


def run(*arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(main.main, ["warm", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Give a PATH, or a list of them with --from-file."),
        (["--null", "x"], "--null is about the LIST of --from-file."),
        (["--share", "3/2", "x"], "'3/2' is not a share such as 1/4."),
        (["--jobs", "0", "x"], "0 is not in the range"),
        (["--from-file", "/nowhere"], "No such file or directory"),
    ],
)
def test_misuse(arguments: list[str], said: str) -> None:
    """Wrong command lines exit with 2."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_progress_and_result(mount: FakeMount) -> None:
    """Without a terminal: a line of progress at the start, and the result."""
    result = run(mount.directory)
    assert result.exit_code == 0
    assert result.stdout.startswith("2 files in the cache, 3.1 MB fetched, 0 B were there; ")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Warming ")


def test_failures(mount: FakeMount, tmp_path: Path) -> None:
    """The first failures are lines, and the others a number; with --json they are in the result."""
    names = tmp_path / "names"
    names.write_text(
        "".join(f"{mount.directory}/no{n}\x1b\n" for n in range(command.MAX_SHOWN + 2))
    )
    result = run("--from-file", str(names), f"{mount.directory}/a")
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if "does not exist" in line]
    assert lines[0] == f"{mount.directory}/no0\\x1b: it does not exist"
    assert len(lines) == command.MAX_SHOWN
    assert result.stderr.splitlines()[-1] == "2 more failed"
    result = run("--json", "--dry-run", "--from-file", str(names))
    assert (result.exit_code, result.stderr) == (1, "")
    found = json.loads(result.stdout)
    assert (found["failed"], len(found["failures"])) == (22, 22)
    assert (found["dry_run"], found["interrupted"]) == (True, False)


def test_a_list_on_standard_input(mount: FakeMount) -> None:
    """- is standard input."""
    text = f"{mount.directory}/a\0{mount.directory}/b\0"
    result = CliRunner().invoke(main.main, ["warm", "-n", "--null", "--from-file", "-"], input=text)
    assert result.stdout.startswith("2 files of 3.1 MB: ")


def test_ctrl_c(mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is shown, and the exit code is 130."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Warming, "run", interrupt)
    result = run(mount.directory)
    assert result.exit_code == 130
    assert "not finished" in result.stdout
