"""Results as text and as JSON."""

import json

import pytest

from mountpoint.checks import report
from mountpoint.checks.checklist import Result, failed, ok, skipped, warning
from mountpoint.checks.report import clean_by, write_json, write_text
from mountpoint.config import (
    BucketConfig,
)
from mountpoint.log.format import Redactor
from tests.unit.checks.subjects import config

RESULTS = [
    ("fuse_device", ok("/dev/fuse can be opened")),
    ("clock", warning("it is 2 min behind", "set it", skew_s=120)),
    ("bucket", failed("denied\nby \x1b[31mhim", "ask")),
    ("list", skipped("needs bucket")),
]


def shown(capsys: pytest.CaptureFixture[str], results: list[tuple[str, Result]]) -> str:
    write_text(BucketConfig("bucket"), results, clean_by(Redactor([])))
    return capsys.readouterr().out


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Mark, name and finding in columns, the hint below, and a count. No control characters."""
    assert shown(capsys, RESULTS) == (
        "ok       fuse device   /dev/fuse can be opened\n"
        "warning  clock         it is 2 min behind\n"
        "                       > set it\n"
        "failed   bucket        denied\\nby \\x1b[31mhim\n"
        "                       > ask\n"
        "skipped  list          needs bucket\n"
        "\n"
        "bucket bucket cannot be mounted: 1 ok, 1 warning, 1 failed, 1 skipped\n"
    )


def test_a_terminal_gets_lines_that_break_at_spaces(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words, paths and options stay whole, and following lines stay in their column."""
    monkeypatch.setattr(report, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    path = "/a/very-long/path-of-more-columns-than-are-left/for-it-on-a-terminal"
    finding = f"the directory '{path}' cannot be used as it is: it cannot be entered"
    text = shown(capsys, [("directory", failed(finding, f"{finding}, --force-path-style helps"))])
    lines = text.partition("\n\n")[0].splitlines()
    columns = [line[23:] for line in lines]
    assert {line[:23].strip() for line in lines[1:]} == {""}
    assert all(len(line) <= 80 or path in line for line in lines)
    words = " ".join(columns).replace("> ", "").split()
    assert words == f"{finding} {finding}, --force-path-style helps".split()


def test_report_of_a_mountable_bucket(capsys: pytest.CaptureFixture[str]) -> None:
    """With only warnings the bucket can be mounted."""
    text = shown(capsys, [RESULTS[0], RESULTS[1], RESULTS[1]])
    assert text.endswith("\nbucket bucket can be mounted: 1 ok, 2 warnings\n")


def test_colour_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only terminals get colour, unless NO_COLOR is set."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("mountpoint.checks.report.click.echo", print)
    assert "\x1b[32mok" in shown(capsys, RESULTS)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(capsys, RESULTS)


@pytest.mark.parametrize("good", [True, False])
def test_json(capsys: pytest.CaptureFixture[str], good: bool) -> None:
    """One object with all results; its text is as clean as for people."""
    results = [RESULTS[1]] if good else [RESULTS[1], RESULTS[2]]
    clean = clean_by(Redactor(["him"]))
    assert write_json(config("/mnt"), results, clean) == good
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] == good
    assert (found["bucket"], found["prefix"], found["directory"]) == ("bucket", "", "/mnt")
    assert found["checks"][0] == {
        "name": "clock",
        "outcome": "warning",
        "finding": "it is 2 min behind",
        "hint": "set it",
        "details": {"skew_s": 120},
    }


def test_json_without_a_directory(capsys: pytest.CaptureFixture[str]) -> None:
    """The directory is null; a prefix that is not UTF-8 keeps its bytes."""
    write_json(config(bucket=BucketConfig("bucket", b"a/")), [], clean_by(Redactor([])))
    found = json.loads(capsys.readouterr().out)
    assert (found["prefix"], found["directory"], found["ok"]) == ("a/", None, True)


def test_secrets_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Secrets in the environment are masked in findings, hints and details."""
    clean = clean_by(Redactor.from_environment({"AWS_SECRET_ACCESS_KEY": "geheimgeheim"}))
    result = failed("a geheimgeheim b", "c geheimgeheim d", key="geheimgeheim")
    write_json(config(), [("bucket", result)], clean)
    write_text(BucketConfig("bucket"), [("bucket", result)], clean)
    out = capsys.readouterr().out
    assert "geheim" not in out
    assert "[redacted]" in out
