"""The checklist: order, skipped checks, presentation, and the rules of the checks."""

import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.credentials
import pytest

from mountpoint.checks import bucket, machine, network, report, settings, words
from mountpoint.checks.checklist import Check, Result, failed, go_through, ok, skipped, warning
from mountpoint.checks.command import CHECKS
from mountpoint.checks.report import clean_by, write_json, write_text
from mountpoint.checks.subject import Objects, Subject, no_progress, within
from mountpoint.checks.throughput import Measurement, measure, throughput
from mountpoint.config import (
    MIB,
    BucketConfig,
    CacheConfig,
    ChangeConfig,
    ClientConfig,
    Config,
    FileSystemConfig,
    LogConfig,
    MountConfig,
)
from mountpoint.errors import AccessDenied, BadHandle, MountError, TransportFault
from mountpoint.log.format import Redactor
from mountpoint.mount import preflight
from mountpoint.s3 import network_probe
from mountpoint.s3.aws.credentials import Origin
from mountpoint.s3.aws.ec2 import Instance
from mountpoint.s3.aws.endpoint import Endpoint, RegionChoice
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.crt.native import symbols
from tests.unit.aws_fakes import isolate

DOCUMENT = Path(__file__).parents[3] / "docs" / "check.md"


def config(directory: str = "", **slices: Any) -> Config:
    """Return a configuration of a bucket."""
    plain = Config(BucketConfig("bucket"), MountConfig(directory), FileSystemConfig(0, 0))
    return replace(plain, **slices)


def subject(directory: str = "", environ: dict[str, str] | None = None, **slices: Any) -> Subject:
    """Return the subject of the checks."""
    return Subject(environ or {}, no_progress, config(directory, **slices))


# --- The list ---


def outcomes(*checks: Check[None]) -> dict[str, Result]:
    """Run checks that do nothing."""
    return dict(go_through(checks, None))


def test_names_are_unique_and_need_earlier_ones() -> None:
    """Names are unique, because programs use them; a check needs only earlier ones."""
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for index, check in enumerate(CHECKS):
        assert re.fullmatch("[a-z_]+", check.name)
        assert set(check.needs) <= set(names[:index])


def test_the_document_has_all_names_in_their_order() -> None:
    """docs/check.md explains each check, in the same order."""
    section = DOCUMENT.read_text().partition("## JSON")[0]
    rows = re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)
    assert rows == [check.name for check in CHECKS]


def test_only_checks_that_need_a_failed_one_are_skipped() -> None:
    """A skipped check names the failed ones, not those skipped in between."""
    asked: list[str] = []

    def look(name: str, result: Result) -> Callable[[None], Result]:
        def check(_: None) -> Result:
            asked.append(name)
            return result

        return check

    found = outcomes(
        Check("a", look("a", failed("broken"))),
        Check("b", look("b", ok("fine"))),
        Check("c", look("c", ok("")), needs=("a", "b")),
        Check("d", look("d", failed("broken"))),
        Check("e", look("e", ok("")), needs=("c", "d")),
        Check("f", look("f", ok("fine")), needs=("b",)),
    )
    assert asked == ["a", "b", "d", "f"]
    assert found["c"] == skipped("needs a")
    assert found["e"] == skipped("needs a, d")
    assert found["f"].outcome == "ok"


@pytest.mark.parametrize("result", [warning("odd"), skipped("there is none")])
def test_a_warning_skips_no_check(result: Result) -> None:
    """Neither a warning nor a check without anything to test skips other checks."""
    found = outcomes(Check("a", lambda _: result), Check("b", lambda _: ok("fine"), needs=("a",)))
    assert found["b"].outcome == "ok"


def test_results_come_one_by_one() -> None:
    """A reader gets the first result before the second check starts."""
    checks: list[Check[None]] = [
        Check("a", lambda _: ok("fine")),
        Check("later", lambda _: pytest.fail("too early")),
    ]
    assert next(go_through(checks, None))[0] == "a"


def test_errors_are_failures() -> None:
    """A MountError becomes a failure with its hint; so does a bug, and the other checks run."""

    def refuse(_: None) -> Result:
        raise MountError("it is broken", "mend it")

    def surprise(_: None) -> Result:
        raise ZeroDivisionError("by zero")

    found = outcomes(Check("a", refuse), Check("b", surprise), Check("c", lambda _: ok("fine")))
    assert found["a"] == failed("it is broken", "mend it")
    assert found["b"].outcome == "failed"
    assert "ZeroDivisionError: by zero (test_checks.py:" in found["b"].finding
    assert found["c"].outcome == "ok"


def test_a_wait_has_an_end() -> None:
    """A check without an answer is reported; errors pass through, even a timeout."""
    never = threading.Event()
    with pytest.raises(MountError, match="the oracle did not answer within 0 seconds"):
        within(0.05, "the oracle", "ask another", never.wait)
    never.set()
    assert within(5, "the oracle", "", lambda: 7) == 7

    def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        within(5, "the oracle", "", late)


# --- How it is shown ---

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


# --- The machine ---


@pytest.mark.parametrize(
    ("release", "channel", "outcome", "kib"),
    [
        ("6.18.1-amd64", True, "ok", 1024),
        ("4.20.0", True, "ok", 1024),
        ("4.19.0-26-amd64", True, "warning", 128),
        ("6.18.1-amd64", False, "warning", 128),
        ("strange", True, "warning", 128),
    ],
)
def test_kernel(
    monkeypatch: pytest.MonkeyPatch, release: str, channel: bool, outcome: str, kib: int
) -> None:
    """The size of reads depends on the kernel and the options."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    result = machine.kernel(subject(mount=MountConfig("", channel=channel)))
    assert (result.outcome, result.details["read_kib"]) == (outcome, kib)


def test_data_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning says why the interpreter receives the bytes."""
    assert machine.data_plane(subject()).outcome == "ok"
    off = machine.data_plane(subject(client=ClientConfig(native=False)))
    assert (off.outcome, off.hint) == ("warning", "omit --no-native")
    monkeypatch.setattr(symbols, "VERSIONS", frozenset({"1.2.3"}))
    other = machine.data_plane(subject())
    assert other.outcome == "warning"
    assert "it knows awscrt 1.2.3" in other.finding
    assert other.hint == "install awscrt 1.2.3 from PyPI"


def test_directory(tmp_path: Path) -> None:
    """No directory, an empty one, and one with files."""
    assert machine.directory(subject()).outcome == "skipped"
    assert machine.directory(subject(str(tmp_path))).outcome == "ok"
    (tmp_path / "file").touch()
    assert machine.directory(subject(str(tmp_path))).outcome == "warning"


def test_a_directory_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging mount is reported, and the other checks run."""
    monkeypatch.setattr(machine, "DIRECTORY_S", 0.05)
    hung = threading.Event()
    monkeypatch.setattr(preflight, "check_directory", lambda path: hung.wait())
    with pytest.raises(MountError, match="'/mnt' did not answer"):
        machine.directory(subject("/mnt"))
    hung.set()


def test_staging(tmp_path: Path) -> None:
    """The rules are those of mounting: existence, room, not inside the mount."""
    staging = ChangeConfig(staging_directory=str(tmp_path / "s"))
    with pytest.raises(MountError, match="does not exist"):
        machine.staging(subject(change=staging))
    (tmp_path / "s").mkdir()
    result = machine.staging(subject(change=staging))
    assert result.outcome == "ok"
    assert int(result.details["room_mib"]) > 0
    with pytest.raises(MountError, match="inside the mount"):
        machine.staging(subject(str(tmp_path), change=staging))
    small = ChangeConfig(staging_directory=str(tmp_path), staging_limit_bytes=MIB)
    with pytest.raises(MountError, match="too little space"):
        machine.staging(subject(change=small))
    assert list((tmp_path / "s").iterdir()) == []


def test_cache(tmp_path: Path) -> None:
    """The rules are those of mounting, and nothing is created."""
    path = tmp_path / "c"
    cache = CacheConfig(directory=str(path))
    result = machine.cache(subject(cache=cache))
    assert result.outcome == "ok"
    assert int(result.details["free_mib"]) > 0
    assert not path.exists()
    with pytest.raises(MountError, match="is in the directory of the mount"):
        machine.cache(subject(str(tmp_path), cache=cache))
    with pytest.raises(MountError, match="in which this user can write"):
        machine.cache(subject(cache=CacheConfig(directory=str(path / "no/such"))))
    (path / "mount-s3-cache").mkdir(parents=True)
    (path / "mount-s3-cache").chmod(0o755)
    with pytest.raises(MountError, match="can be entered by others"):
        machine.cache(subject(cache=cache))
    assert machine.cache(subject()).outcome == "skipped"


def test_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's destination; the check creates nothing, and reports an unusable directory."""
    inside = str(tmp_path / "log")
    assert machine.log(subject(log=LogConfig(directory=inside))).outcome == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "log").touch()
    with pytest.raises(MountError, match=r"cannot write a log in .*: File exists"):
        machine.log(subject(log=LogConfig(directory=inside)))
    assert machine.log(subject(log=LogConfig(no_log=True))).outcome == "skipped"
    assert machine.log(subject(log=LogConfig(foreground=True))).finding == "standard error"
    for module in ("checks.machine", "log.setup"):
        monkeypatch.setattr(f"mountpoint.{module}.SYSLOG_SOCKET", str(tmp_path / "log"))
    assert machine.log(subject()).finding == "syslog"
    for module in ("checks.machine", "log.setup"):
        monkeypatch.setattr(f"mountpoint.{module}.SYSLOG_SOCKET", str(tmp_path / "none"))
    assert machine.log(subject()).outcome == "warning"


def test_journal(tmp_path: Path) -> None:
    """A mount works without the journal, so it is a warning; a read-only mount needs none."""
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    assert machine.uploads_journal(subject(environ=environ)).outcome == "ok"
    (tmp_path / "mount-s3").touch()
    result = machine.uploads_journal(subject(environ=environ))
    assert result.outcome == "warning"
    assert "mount-s3ctl cleanup" in result.finding
    read_only = subject(environ=environ, mount=MountConfig("", read_only=True))
    assert machine.uploads_journal(read_only).outcome == "skipped"
    assert list(tmp_path.iterdir()) == [tmp_path / "mount-s3"]


# --- Who asks, and where ---

#: Later than the expiry check, even if other tests take minutes.
LATER = datetime.now(UTC) + timedelta(days=50)


@pytest.mark.parametrize(
    ("origin", "finding"),
    [
        (
            Origin("env", None, "AKIA…MPLE", None),
            "environment variables, access key AKIA…MPLE, no expiry",
        ),
        (
            Origin("sso", "work", "ASIA…MPLE", LATER),
            "SSO, profile 'work', access key ASIA…MPLE, they expire in 50 days",
        ),
        (
            Origin("a new one", None, "…", None),
            "a new one, access key …, no expiry",
        ),
    ],
)
def test_credentials(monkeypatch: pytest.MonkeyPatch, origin: Origin, finding: str) -> None:
    """Provider, shortened key and expiry are shown, and nothing else of the keys."""
    monkeypatch.setattr(settings, "Credentials", lambda *_, **__: SimpleNamespace(origin=origin))
    result = settings.credentials(subject())
    assert (result.outcome, result.finding) == ("ok", finding)
    assert result.details["provider"] == origin.method
    assert ("expires_at" in result.details) == (origin.expires_at is not None)


@pytest.mark.parametrize(
    ("variables", "option", "finding", "source"),
    [
        ({}, None, "variables and the AWS configuration add nothing to the options", ""),
        (
            {"AWS_ENDPOINT_URL": "http://a.example", "AWS_MAX_ATTEMPTS": "2"},
            None,
            "endpoint by AWS_ENDPOINT_URL, 2 tries",
            "AWS_ENDPOINT_URL",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://a.example", "AWS_USE_FIPS_ENDPOINT": "true"},
            "http://b.example",
            "FIPS",
            "--endpoint-url",
        ),
        ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, None, "dual-stack", ""),
    ],
)
def test_configuration(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    option: str | None,
    finding: str,
    source: str,
) -> None:
    """Shows the settings besides the options, as far as they take effect."""
    isolate(tmp_path, monkeypatch)
    asked = subject(environ=variables, bucket=BucketConfig("bucket", endpoint_url=option))
    assert settings.configuration(asked).finding == finding
    assert asked.endpoint_source == source


def test_the_providers_are_botocores() -> None:
    """All names of providers exist in botocore."""
    providers = vars(botocore.credentials).values()
    methods = {getattr(each, "METHOD", None) for each in providers}
    assert set(settings.PROVIDERS) <= methods


@pytest.mark.parametrize(("given", "expected"), [(None, 12.5), (3.0, 3.0)])
def test_the_bandwidth_of_the_instance(
    monkeypatch: pytest.MonkeyPatch, given: float | None, expected: float
) -> None:
    """The measured rate is compared with the target of a mount."""
    monkeypatch.setattr(Instance, "bandwidth_gbps", lambda _: 12.5)
    monkeypatch.setattr(Instance, "region", lambda _: "eu-west-1")
    asked = subject(client=ClientConfig(throughput_gbps=given))
    settings.region(asked)
    assert asked.config.client.throughput_gbps == expected


def test_a_proxy_that_is_none() -> None:
    """The message names the wrong variable, but not its value, which may have a password."""
    where = BucketConfig("bucket", endpoint_url="http://store.example.com")
    asked = subject(bucket=where)
    asked.environ = {"HTTP_PROXY": "http://me:geheim@proxy:port"}
    asked.region = RegionChoice("us-east-1", "default")
    with pytest.raises(MountError, match="HTTP_PROXY is not the URL of a proxy") as caught:
        settings.endpoint(asked)
    assert "geheim" not in str(caught.value)


# --- The bucket ---


@pytest.mark.parametrize(
    ("skew_s", "signed", "outcome", "said"),
    [
        (0.4, True, "ok", "within a minute"),
        (-59.4, True, "ok", "within a minute"),
        (60, True, "warning", "60 s behind"),
        (-899, True, "warning", "15 min ahead of"),
        (900, True, "failed", "15 min behind"),
        (-7200, True, "failed", "2 h ahead of"),
        (7200, False, "warning", "2 h behind"),
        (None, True, "skipped", "no date"),
    ],
)
def test_clock(
    monkeypatch: pytest.MonkeyPatch,
    skew_s: float | None,
    signed: bool,
    outcome: str,
    said: str,
) -> None:
    """More than a minute is a warning; from 15 minutes on S3 refuses signatures."""
    monkeypatch.setattr(network_probe, "skew_s", lambda *_: skew_s)
    asked: Any = subject()
    asked.connection = asked.endpoint = object()
    asked.credentials = object() if signed else None
    result = network.clock(asked)
    assert result.outcome == outcome
    assert said in result.finding
    assert bool(result.hint) == (outcome in ("warning", "failed"))


def see(*infos: ObjectInfo) -> Objects:
    """Return the summary of a listing of these objects."""
    found = Objects()
    for info in infos:
        bucket._see(found, info)
    return found


def test_objects_chosen_for_reading() -> None:
    """The first readable object and the first large one: not archived, empty or without ETag."""
    large = bucket.LARGE_BYTES
    empty = ObjectInfo(b"empty", 0, 0, '"a"')
    archived = ObjectInfo(b"archived", large, 0, '"a"', "GLACIER")
    unnamed = ObjectInfo(b"unnamed", large, 0, "")
    small = ObjectInfo(b"small", large - 1, 0, '"a"')
    restored = ObjectInfo(b"restored", large, 0, '"a"', "DEEP_ARCHIVE", restored=True)
    last = ObjectInfo(b"last", 2 * large, 0, '"a"')
    found = see(empty, archived, unnamed, small, restored, last)
    assert (found.readable, found.large) == (small, restored)
    assert (found.seen, found.archived, found.largest_bytes) == (6, 1, 2 * large)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (64 * MIB, "64.0 MiB"),
        (3 << 40, "3,072.0 GiB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    """Sizes in a readable form."""
    assert words.size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59, "59 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (864_000, "10 days")],
)
def test_durations(seconds: float, text: str) -> None:
    """Durations in a readable form."""
    assert words.duration(seconds) == text


def test_a_connection_that_is_refused_is_said_as_mounting_says_it() -> None:
    """A refused connection is reported as in mounting: host, reason and hint."""
    asked = subject()
    asked.endpoint = Endpoint("https", "s3.example.com", "", "us-east-1", "s3", "v4")
    error = network._unreachable(asked, ConnectionRefusedError(111, "Connection refused"), "eth1")
    assert error.what == "no answer from s3.example.com (Connection refused by eth1)"
    assert "--endpoint-url" in error.hint


# --- Throughput ---


class Stream:
    """A stream that delivers at its own speed, until it is closed."""

    def __init__(self, *, stops_at: int = 1 << 62, error: Exception | None = None) -> None:
        self._stops_at = stops_at
        self._error = error
        self._closed = threading.Event()
        self.asked: list[tuple[int, int]] = []
        self.reader: threading.Thread | None = None

    def open(self) -> None:
        self.reader = threading.current_thread()

    def read(self, offset: int, size: int) -> bytes:
        self.asked.append((offset, size))
        if offset >= self._stops_at:
            if self._error is not None:
                raise self._error
            self._closed.wait(30)
            raise BadHandle("closed")
        return bytes(size)

    def close(self) -> None:
        self._closed.set()


def measured(stream: Any, size_bytes: int, max_s: float) -> tuple[int, float, Any, list[int]]:
    steps: list[int] = []
    found = measure(stream, size_bytes, max_s, steps.append)
    assert stream._closed.is_set()
    assert stream.reader is not None
    assert not stream.reader.is_alive()
    return *found, steps


def test_all_that_was_asked_for_is_read_once() -> None:
    """The object is read once, in the kernel's steps, each of which is reported."""
    stream = Stream()
    size_bytes, seconds, error, steps = measured(stream, 5 * MIB // 2, 20)
    assert stream.asked == [(0, MIB), (MIB, MIB), (2 * MIB, MIB // 2)]
    assert (size_bytes, error, steps) == (5 * MIB // 2, None, [MIB, MIB, MIB // 2])
    assert seconds > 0


def test_a_slow_line_is_measured_by_arrived_bytes() -> None:
    """A slow line is measured by the bytes that arrive in time; the thread ends, too."""
    begun_s = time.monotonic()
    size_bytes, seconds, error, _ = measured(Stream(stops_at=2 * MIB), 64 * MIB, 0.2)
    assert (size_bytes, error) == (2 * MIB, None)
    assert seconds >= 0.2
    assert time.monotonic() - begun_s < 10


def test_a_read_that_fails_ends_it() -> None:
    """A failed read ends the measurement with its error."""
    fault = TransportFault("cut")
    size_bytes, _, error, _ = measured(Stream(stops_at=MIB, error=fault), 64 * MIB, 20)
    assert (size_bytes, error) == (MIB, fault)


def asked_for_throughput(
    monkeypatch: pytest.MonkeyPatch, size_bytes: int, error: Exception | None = None
) -> Result:
    """Return the result of a measurement."""
    asked: Any = subject()
    asked.client = object()
    asked.objects = Objects(large=ObjectInfo(b"big", 64 * MIB, 0, '"a"'))
    monkeypatch.setattr("mountpoint.checks.throughput.Streams", lambda *_: Streams())
    found = Measurement(size_bytes, 2.0, error)
    monkeypatch.setattr("mountpoint.checks.throughput.measure", lambda *_: found)
    return throughput(asked)


class Streams:
    """Creates no real stream."""

    def stream(self, info: ObjectInfo) -> None:
        """Return no stream."""


def test_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is in MB/s, beside the target; a partial read is a warning."""
    result = asked_for_throughput(monkeypatch, 64 * MIB)
    assert result.outcome == "ok"
    assert result.details["mb_per_s"] == 33.6
    assert result.details["aim_mb_per_s"] == 1250
    assert result.finding.startswith("34 MB/s: 64 MiB of 'big' in 2.0 s; ")
    slow = asked_for_throughput(monkeypatch, MIB)
    assert (slow.outcome, slow.details["mb_per_s"]) == ("warning", 0.5)
    with pytest.raises(MountError, match="'big' cannot be read: no") as caught:
        asked_for_throughput(monkeypatch, 0, AccessDenied("no", hint="ask"))
    assert caught.value.hint == "ask"


def test_nothing_large_enough() -> None:
    """Without a large object nothing is read."""
    asked = subject()
    asked.objects = Objects()
    asked.client = SimpleNamespace()  # type: ignore[assignment]
    assert throughput(asked).outcome == "skipped"
