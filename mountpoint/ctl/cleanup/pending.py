"""Decide which pending multipart uploads of a bucket to abort, and abort them.

The bucket lists the pending uploads; the journals of this machine (`upload.pending_journal`) say
which mount created each. An upload of a dead mount is aborted once it is old enough. An upload in
no journal comes from another program, user or machine, which may be using it right now: it is
aborted only on explicit request (`everything`). Uploads of living mounts are never aborted.

This module does not know the size of an upload (that takes a request for each), or whether a
program elsewhere is alive.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

from mountpoint.errors import NoSuchUpload, OperationError
from mountpoint.s3.client import ObjectClient, PendingUpload
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.pending_journal import BucketAddress, FoundJournal, JournaledUpload

#: Parallel requests: an abort takes S3 20 to 50 ms.
AT_ONCE = 16

Verdict = Literal["abort", "keep"]
Outcome = Literal["aborted", "kept", "gone", "failed"]


@dataclass(frozen=True, slots=True)
class JudgedUpload:
    """A pending upload and the decision on it. `why` is a reason for the user."""

    upload: PendingUpload
    mine: bool
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True)
class UploadOutcome:
    """The outcome for an upload; for a failure, `why` is S3's error."""

    pending: JudgedUpload
    outcome: Outcome
    why: str = ""


def listed(
    client: ObjectClient, retry_policy: RetryPolicy, prefix: bytes
) -> Iterator[PendingUpload]:
    """Yield all pending uploads of keys that begin with `prefix`. Raises S3Error."""
    after: tuple[bytes, str] | None = None
    while True:
        page = retry_policy.ask(partial(client.list_uploads, prefix, after=after)).answer()
        yield from page.uploads
        if page.next_marker is None or page.next_marker == after:
            return
        after = page.next_marker


def judge(
    uploads: Iterable[PendingUpload],
    found: Sequence[FoundJournal],
    *,
    older_than_s: float,
    everything: bool,
    now_ns: int,
) -> list[JudgedUpload]:
    """Return the decision on each upload. Pure.

    The age of an upload is the lesser of S3's and the journal's, because clocks differ.
    """
    known: dict[tuple[bytes, str], tuple[FoundJournal, JournaledUpload]] = {
        (begun.key, begun.upload_id): (journal, begun)
        for journal in found
        for begun in journal.uploads.values()
    }
    judged = []
    for upload in uploads:
        journal, begun = known.get((upload.key, upload.upload_id), (None, None))
        mine = journal is not None
        started_ns = max(upload.started_ns, begun.started_ns if begun is not None else 0)
        verdict: Verdict = "keep"
        if journal is not None and not journal.dead:
            why = f"its mount is running, process {journal.pid}"
        elif not mine and not everything:
            why = "not started by a mount of this machine and user"
        elif now_ns - started_ns < older_than_s * 1e9:
            why = "too young"
        else:
            verdict, why = "abort", ""
        judged.append(JudgedUpload(upload, mine, verdict, why))
    return judged


def carry_out(
    client: ObjectClient, retry_policy: RetryPolicy, judged: Iterable[JudgedUpload]
) -> Iterator[UploadOutcome]:
    """Abort the chosen uploads; yield the outcome of each, in order."""
    rest = iter(judged)
    while batch := list(islice(rest, AT_ONCE)):
        questions = [
            retry_policy.ask(partial(client.abort_upload, each.upload.key, each.upload.upload_id))
            if each.verdict == "abort"
            else None
            for each in batch
        ]
        for each, question in zip(batch, questions, strict=True):
            if question is None:
                yield UploadOutcome(each, "kept", each.why)
                continue
            try:
                question.answer()
            except NoSuchUpload:
                yield UploadOutcome(each, "gone", "it was completed or aborted in the meantime")
            except OperationError as error:
                yield UploadOutcome(each, "failed", str(error) or type(error).__name__)
            else:
                yield UploadOutcome(each, "aborted")


def strike(
    found: Sequence[FoundJournal],
    address: BucketAddress,
    prefix: bytes,
    pending: Iterable[PendingUpload],
) -> int:
    """Remove ended uploads from dead mounts' journals; return their number. Raises OSError.

    `pending` are the remaining uploads of the bucket at `address` whose keys begin with `prefix`.
    Entries of other buckets and prefixes stay, because nothing is known about them.
    """
    still = {(upload.key, upload.upload_id) for upload in pending}
    struck = 0
    for journal in found:
        if not journal.dead or journal.address != address:
            continue
        gone = [
            begun.upload_id
            for begun in journal.uploads.values()
            if begun.key.startswith(prefix) and (begun.key, begun.upload_id) not in still
        ]
        journal.strike(gone)
        struck += len(gone)
    return struck
