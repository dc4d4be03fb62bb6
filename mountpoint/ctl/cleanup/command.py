"""`mount-s3ctl cleanup`: abort the uploads that killed mounts left in a bucket (`pending`).

Its options for bucket, endpoint and credentials come from the option table of `mount-s3`, so both
programs accept the same ones.

The exit code is also 1 if an upload could not be aborted.
"""

import copy
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import click

from mountpoint.cli.main import BUCKET, CREDENTIALS, main
from mountpoint.cli.settings import make_config
from mountpoint.config import Config, LogConfig
from mountpoint.ctl.cleanup.pending import UploadOutcome, carry_out, judge, listed, strike
from mountpoint.ctl.group import confirm, json_option, write_json
from mountpoint.ctl.words import age, count
from mountpoint.errors import AccessDenied, MountError, OperationError
from mountpoint.log.format import printable
from mountpoint.log.setup import configure_log
from mountpoint.log.words import display_name
from mountpoint.metrics.recorder import Meters
from mountpoint.s3.client import ObjectClient
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.pending_journal import (
    BucketAddress,
    FoundJournal,
    default_directory,
    journals,
)

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
#: Seconds for one page or one abort, with all retries.
TRY_S = 10.0
TOTAL_S = 30.0

#: In the order of the summary.
OUTCOMES = ("aborted", "would abort", "gone", "failed", "kept")
NEEDED = "s3:ListBucketMultipartUploads on the bucket and s3:AbortMultipartUpload on its objects"


def duration(text: str) -> float:
    """Return the seconds in `text`: 90s, 15m, 1h, 7d; a number alone means seconds."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None:
        raise click.BadParameter(f"'{text}' is not a duration such as 90s, 15m, 1h or 7d.")
    return float(int(found[1]) * UNITS_S[found[2] or "s"])


def connection_options(command: click.Command) -> click.Command:
    """Add the options of `mount-s3` for bucket, endpoint and credentials."""
    shared = [
        copy.copy(option)
        for option in main.params
        if getattr(option, "topic", "") in (BUCKET, CREDENTIALS) or option.name == "ca_bundle"
    ]
    for option in shared:
        if option.name == "prefix":
            option.help = "Clean up only below this prefix; it must end in '/'."
    command.params = [*shared, *command.params]
    return command


def config_of(bucket: str, options: dict[str, Any]) -> Config:
    """Return the `Config` that `mount-s3` makes of these options. Raises MountError."""
    parameters = main.make_context("mount-s3", ["--", bucket, "/"]).params
    return make_config(**{**parameters, **options})


@connection_options
@click.command()
@click.argument("bucket", metavar="BUCKET")
@click.option(
    "--older-than",
    "older_than_s",
    type=duration,
    default="1h",
    metavar="DURATION",
    show_default=True,
    help="Keep younger uploads. Examples: 90s, 15m, 1h, 7d.",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Also abort uploads of other programs, users and machines. Some may still be in progress.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation with --all.")
@click.option(
    "-n", "--dry-run", is_flag=True, help="Show what the command would do, and do nothing."
)
@json_option
@click.option(
    "--journals",
    "directory",
    metavar="DIRECTORY",
    help="Directory where mounts record their uploads.  [default: this user's]",
)
def cleanup(
    bucket: str,
    older_than_s: float,
    everything: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    directory: str | None,
    **options: Any,
) -> None:
    """Abort the uploads that killed mounts left in BUCKET.

    Parts of these uploads cost money, and listings of objects do not show them. Without options the
    command aborts multipart uploads if a mount of this machine and user started them, if that
    mount is dead, and if the upload is older than an hour.
    """
    config = config_of(bucket, options)
    configure_log(LogConfig(foreground=True, filter=os.environ.get("MOUNTPOINT_LOG") or None))
    where = Path(directory) if directory else default_directory(os.environ)
    command = _Cleanup(config, older_than_s, everything, as_json)
    code = command.run(where, ask=everything and not yes, dry_run=dry_run)
    click.get_current_context().exit(code)


class _Cleanup:
    """One run of the command."""

    def __init__(
        self, config: Config, older_than_s: float, everything: bool, as_json: bool
    ) -> None:
        # constants
        self._config = config
        self._older_than_s = older_than_s
        self._everything = everything
        self._as_json = as_json
        # mutable
        self._now_ns = time.time_ns()

    def run(self, directory: Path, *, ask: bool, dry_run: bool) -> int:
        """Run the command; return the exit code. Raises MountError."""
        from mountpoint.s3.aws.settings import aws_settings
        from mountpoint.s3.connect import connect  # slow to import: not for --help

        config = aws_settings(self._config.credentials.profile, os.environ).apply_to(self._config)
        stopping, meters = threading.Event(), Meters()
        retry_policy = RetryPolicy(
            try_s=TRY_S,
            total_s=TOTAL_S,
            stopping=stopping,
            max_tries=config.client.max_tries,
        )
        client = connect(
            config.bucket, config.credentials, config.client, os.environ, stopping, meters
        )
        try:
            with journals(directory) as found:
                return self._clean(client, retry_policy, found, ask=ask, dry_run=dry_run)
        except OSError as error:
            raise MountError(
                f"the journals in '{directory}' cannot be used: {error.strerror}",
                "run as the user who mounted the bucket, or give --journals",
            ) from error
        finally:
            client.close()

    def _clean(
        self,
        client: ObjectClient,
        retry_policy: RetryPolicy,
        found: list[FoundJournal],
        *,
        ask: bool,
        dry_run: bool,
    ) -> int:
        prefix = self._config.bucket.prefix
        # Read the journals first: an upload created later is in the listing, and young.
        try:
            uploads = list(listed(client, retry_policy, prefix))
        except OperationError as error:
            hint = f"the credentials need {NEEDED}" if isinstance(error, AccessDenied) else ""
            raise MountError(f"pending uploads cannot be listed: {error}", hint) from error
        judged = judge(
            uploads,
            found,
            older_than_s=self._older_than_s,
            everything=self._everything,
            now_ns=self._now_ns,
        )
        foreign = sum(each.verdict == "abort" and not each.mine for each in judged)
        if dry_run:
            return self._report([UploadOutcome(each, "kept", each.why) for each in judged], 0, True)
        if ask and foreign:
            others = count(foreign, "upload")
            question = f"Abort {others} that no mount of this machine and user started?"
            confirm(question, "aborted", "abort")
        done = list(carry_out(client, retry_policy, judged))
        over = {id(each.pending) for each in done if each.outcome in ("aborted", "gone")}
        still = [each.upload for each in judged if id(each) not in over]
        struck = strike(found, BucketAddress.of(self._config.bucket), prefix, still)
        return self._report(done, struck, False)

    def _report(self, done: list[UploadOutcome], struck: int, dry_run: bool) -> int:
        names = [_outcome(each, dry_run) for each in done]
        failed = names.count("failed")
        if self._as_json:
            uploads = [_as_json(each, name) for each, name in zip(done, names, strict=True)]
            write_json({"uploads": uploads, "forgotten": struck, "dry_run": dry_run})
            return 1 if failed else 0
        for each, name in zip(done, names, strict=True):
            click.echo(self._line(each, name))
        counts = [f"{names.count(name)} {name}" for name in OUTCOMES if name in names]
        bucket = display_name(self._config.bucket)
        click.echo(f"{bucket}: {', '.join(counts) or 'no pending uploads'}")
        return 1 if failed else 0

    def _line(self, done: UploadOutcome, name: str) -> str:
        upload = done.pending.upload
        key = printable(upload.key.decode("utf-8", "surrogateescape"))
        why = f"  ({printable(done.why)})" if done.why else ""
        return f"{name:<11}  {age((self._now_ns - upload.started_ns) // 10**9):>8} old  {key}{why}"


def _outcome(done: UploadOutcome, dry_run: bool) -> str:
    return "would abort" if dry_run and done.pending.verdict == "abort" else done.outcome


def _as_json(done: UploadOutcome, name: str) -> dict[str, Any]:
    upload = done.pending.upload
    seconds, rest_ns = divmod(upload.started_ns, 10**9)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return {
        "key": upload.key.decode("utf-8", "surrogateescape"),
        "upload_id": upload.upload_id,
        "started": f"{moment}.{rest_ns // 1_000_000:03}Z",
        "mine": done.pending.mine,
        "outcome": name.replace(" ", "_"),
        "why": done.why,
    }
