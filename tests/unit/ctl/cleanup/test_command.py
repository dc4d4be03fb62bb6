"""Which pending uploads are aborted, which stay and why; and the command's options."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mountpoint import errors
from mountpoint.cli import main as cli
from mountpoint.ctl.cleanup.command import config_of, duration
from mountpoint.ctl.cleanup.pending import carry_out, judge, listed, strike
from mountpoint.ctl.main import main
from mountpoint.metrics.counters import Counters
from mountpoint.s3 import connect
from mountpoint.s3.client import PendingUpload, PutOptions
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.pending_journal import BucketAddress, FoundJournal, Journal, journals
from tests.unit.fake_client import MTIME_NS, SAFE_S, FakeClient, Fault

ADDRESS = BucketAddress("bucket")
HOUR_S = 3600.0


@pytest.fixture
def client() -> Iterator[FakeClient]:
    """A bucket."""
    fake = FakeClient(page_size=2)
    yield fake
    FakeClient.close(fake)


@pytest.fixture
def retry_policy() -> RetryPolicy:
    """A policy without short limits."""
    return RetryPolicy(
        try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event(), counters=Counters()
    )


def begin(client: FakeClient, *keys: bytes) -> list[str]:
    return [client.create_upload(key, PutOptions()).result(SAFE_S) for key in keys]


class Journals:
    """Journals of dead mounts and of a living one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.living = Journal(directory, ADDRESS)

    def dead(self, key: bytes, upload_id: str, address: BucketAddress = ADDRESS) -> None:
        """Record an upload of a dead mount."""
        journal = Journal(self.directory, address)
        journal.begun(key, upload_id)
        journal.close()

    def left(self) -> list[str]:
        """Return the ids of all recorded uploads."""
        with journals(self.directory) as found:
            return sorted(each for one in found for each in one.uploads)


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[Journals]:
    """The journals of a machine."""
    made = Journals(tmp_path)
    yield made
    made.living.close()


def later(
    client: FakeClient, found: list[FoundJournal], age_s: float, *, everything: bool = False
) -> dict:  # type: ignore[type-arg]
    """Decide about the pending uploads, `age_s` after the last one began."""
    youngest_ns = max(
        [MTIME_NS, *(each.started_ns for one in found for each in one.uploads.values())]
    )
    pending = client.list_uploads(b"").result(SAFE_S).uploads
    judged = judge(
        pending,
        found,
        older_than_s=HOUR_S,
        everything=everything,
        now_ns=youngest_ns + int(age_s * 1e9),
    )
    return {each.upload.upload_id: each.verdict for each in judged}


def test_only_a_dead_mounts_old_ones_go(client: FakeClient, noted: Journals) -> None:
    """Old uploads:

    a dead mount's go, those of others only with everything, a living one's never.
    """
    client.page_size = 1000
    dead, living, foreign = begin(client, b"dead", b"living", b"foreign")
    noted.dead(b"dead", dead)
    noted.living.begun(b"living", living)
    with journals(noted.directory) as found:
        assert later(client, found, HOUR_S) == {dead: "abort", living: "keep", foreign: "keep"}
        assert later(client, found, HOUR_S - 1)[dead] == "keep"
        assert later(client, found, HOUR_S, everything=True) == {
            dead: "abort",
            living: "keep",
            foreign: "abort",
        }


def test_the_same_id_of_another_key_is_not_ours(client: FakeClient, noted: Journals) -> None:
    """Both key and id must match the journal."""
    (name,) = begin(client, b"key")
    noted.dead(b"another", name)
    with journals(noted.directory) as found:
        assert later(client, found, HOUR_S) == {name: "keep"}


@given(
    started_ns=st.integers(0, 10**19),
    now_ns=st.integers(0, 10**19),
    older_than_s=st.integers(0, 99),
)
def test_young_uploads_never_go(started_ns: int, now_ns: int, older_than_s: int) -> None:
    """Young uploads never go, with any owner and option; a time in the future counts as young."""
    upload = PendingUpload(b"key", "id", started_ns)
    (judged,) = judge([upload], [], older_than_s=older_than_s, everything=True, now_ns=now_ns)
    assert (judged.verdict == "abort") == (now_ns - started_ns >= older_than_s * 10**9)


def test_all_pages(client: FakeClient, retry_policy: RetryPolicy) -> None:
    """Uploads on all pages are found, and only those below the prefix."""
    begin(client, *(f"a/{number}".encode() for number in range(7)), b"b/1")
    assert len(list(listed(client, retry_policy, b"a/"))) == 7
    assert len(list(listed(client, retry_policy, b""))) == 8


def test_aborting(client: FakeClient, retry_policy: RetryPolicy) -> None:
    """An abort is retried if that may help; a failure does not stop the others."""
    names = begin(client, *(f"{number:02}".encode() for number in range(40)))
    client.inject("abort_upload", Fault(error=errors.Throttled("slow down")))
    client.inject("abort_upload", Fault(error=errors.AccessDenied("no")))
    del client.uploads[names[30]]
    pending = [PendingUpload(f"{number:02}".encode(), name, 0) for number, name in enumerate(names)]
    judged = judge(pending, [], older_than_s=0, everything=True, now_ns=1)
    outcomes = [each.outcome for each in carry_out(client, retry_policy, judged)]
    assert len(outcomes) == 40
    assert outcomes[30] == "gone"
    assert (outcomes.count("aborted"), outcomes.count("failed")) == (38, 1)
    assert len(client.uploads) == 1


def test_striking(noted: Journals) -> None:
    """Ended uploads in this bucket, below this prefix, are removed from journals; others stay."""
    noted.dead(b"a/gone", "gone")
    noted.dead(b"a/there", "there")
    noted.dead(b"b/other prefix", "other prefix")
    noted.dead(b"a/other bucket", "other bucket", BucketAddress("other"))
    noted.living.begun(b"a/living", "living")
    with journals(noted.directory) as found:
        assert strike(found, ADDRESS, b"a/", [PendingUpload(b"a/there", "there", 0)]) == 1
    assert noted.left() == ["living", "other bucket", "other prefix", "there"]


# --- the command ---


def run(*arguments: str) -> tuple[int, str]:
    """Run the command; return its exit code and its output."""
    result = CliRunner().invoke(main, list(arguments), prog_name="mount-s3ctl")
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800)]
)
def test_durations(text: str, seconds: int) -> None:
    """A number and a unit."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1h", "1.5h", "1w", "1 h", "1hh"])
def test_wrong_durations(text: str) -> None:
    """Everything else is refused."""
    with pytest.raises(click.BadParameter):
        duration(text)
    assert run("cleanup", "bucket", f"--older-than={text}")[0] == 2


def test_options_are_those_of_the_mount() -> None:
    """The options for bucket, endpoint and credentials are those of `mount-s3`."""
    options = {
        "prefix": "a/",
        "region": "eu-west-1",
        "endpoint_url": "http://127.0.0.1:9",
        "force_path_style": True,
        "no_sign_request": True,
        "ca_bundle": None,
    }
    config = config_of("s3://bucket", options)
    assert (config.bucket.name, config.bucket.prefix) == ("bucket", b"a/")
    assert config.bucket.region == "eu-west-1"
    assert config.bucket.endpoint_url == "http://127.0.0.1:9"
    assert config.bucket.force_path_style
    assert config.credentials.no_sign_request
    cleanup = main.commands["cleanup"]
    names = {name for option in cleanup.params for name in option.opts}
    wanted = [
        option
        for option in cli.main.params
        if getattr(option, "topic", "") in (cli.BUCKET, cli.CREDENTIALS)
    ]
    assert len(wanted) >= 9
    assert names >= {name for option in wanted for name in option.opts}
    prefix = next(option for option in cli.main.params if option.name == "prefix")
    assert "Mount" in (prefix.help or "")  # the help of mount-s3 itself is unchanged


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["BAD_", "--region", "us-east-1"], "not a bucket name"),
        (["bucket", "--prefix", "a"], "must end"),
        (["bucket", "--profile", "p", "--no-sign-request"], "exclude each other"),
    ],
)
def test_options_that_the_mount_refuses(arguments: list[str], reason: str) -> None:
    """Invalid options are reported as by `mount-s3`, with exit code 1."""
    code, output = run("cleanup", *arguments)
    assert code == 1
    assert reason in output


def test_journals_that_cannot_be_read(
    client: FakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreadable directory is an error, not an empty one."""
    monkeypatch.setattr(connect, "connect", lambda *_: client)
    os.symlink("/dev/null", tmp_path / "x.journal")
    code, output = run("cleanup", "bucket", "--region", "us-east-1", "--journals", str(tmp_path))
    assert code == 1
    assert "cannot be used" in output


def test_json_of_any_key(
    client: FakeClient, noted: Journals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is not text is valid JSON, and a line shows only printable characters."""
    monkeypatch.setattr(connect, "connect", lambda *_: client)
    monkeypatch.setattr(client, "close", lambda: None)  # two runs
    (name,) = begin(client, b"\x1b[31m\xff")
    arguments = ["cleanup", "bucket", "--journals", str(noted.directory), "--dry-run", "--all"]
    code, output = run(*arguments, "--json")
    assert code == 0
    assert json.loads(output) == {
        "uploads": [
            {
                "key": "\x1b[31m\udcff",
                "upload_id": name,
                "started": "2023-11-14T22:13:20.000Z",
                "mine": False,
                "outcome": "would_abort",
                "why": "",
            }
        ],
        "forgotten": 0,
        "dry_run": True,
    }
    code, output = run(*arguments)
    assert "\\x1b[31m\\xff" in output
    assert "\x1b" not in output


@pytest.mark.parametrize(
    ("answer", "reason"), [("n\n", "the answer was not yes"), ("", "is no terminal")]
)
def test_unconfirmed_aborts(
    client: FakeClient,
    noted: Journals,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    reason: str,
) -> None:
    """Others' uploads stay; the exit code is 1, with a reason."""
    monkeypatch.setattr(connect, "connect", lambda *_: client)
    begin(client, b"key")
    arguments = ["cleanup", "bucket", "--journals", str(noted.directory), "--all"]
    result = CliRunner().invoke(main, [*arguments, "--older-than", "0"], input=answer)
    assert result.exit_code == 1
    assert reason in result.stderr
    assert len(client.uploads) == 1
