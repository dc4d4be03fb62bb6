"""Which pending multipart uploads of a bucket can go, and their end.

The bucket lists what is pending; the journals of this machine (`writing.journal`) tell whose it
is. What a dead mount has begun can go once it is old enough. What is in no journal was begun by
another program, another user or another machine, which may be at it right now: it goes only when
everything is asked for. What a living mount has begun never goes.

Not known here: how large an upload is (that is a request for each), and whether a program
elsewhere is alive.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

from mountpoint.errors import NoSuchUpload, OperationError
from mountpoint.s3.client import ObjectClient, PendingUpload
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.pending_journal import Begun, Found, Place

#: Requests under way at once: an abort takes 20 to 50 ms on S3.
AT_ONCE = 16

Verdict = Literal["abort", "keep"]
Outcome = Literal["aborted", "kept", "gone", "failed"]


@dataclass(frozen=True, slots=True)
class Pending:
    """An upload that is pending, and what is to become of it. `why` is for who reads it."""

    upload: PendingUpload
    mine: bool
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """What has become of it; `why` of a failure is what S3 says."""

    pending: Pending
    outcome: Outcome
    why: str = ""


def listed(
    client: ObjectClient, retry_policy: RetryPolicy, prefix: bytes
) -> Iterator[PendingUpload]:
    """Yield all uploads that are pending, of keys that begin with `prefix`. Raises S3Error."""
    after: tuple[bytes, str] | None = None
    while True:
        page = retry_policy.ask(partial(client.list_uploads, prefix, after=after)).answer()
        yield from page.uploads
        if page.next_marker is None or page.next_marker == after:
            return
        after = page.next_marker


def judge(
    uploads: Iterable[PendingUpload],
    found: Sequence[Found],
    *,
    older_than_s: float,
    everything: bool,
    now_ns: int,
) -> list[Pending]:
    """Return what is to become of each. Pure.

    An upload is as old as the younger of what S3 and the journal tell: clocks differ.
    """
    known: dict[tuple[bytes, str], tuple[Found, Begun]] = {
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
            why = "not begun by a mount of this machine and user"
        elif now_ns - started_ns < older_than_s * 1e9:
            why = "too young"
        else:
            verdict, why = "abort", ""
        judged.append(Pending(upload, mine, verdict, why))
    return judged


def carry_out(
    client: ObjectClient, retry_policy: RetryPolicy, judged: Iterable[Pending]
) -> Iterator[Done]:
    """Abort what is to be aborted; yield what has become of each, in order."""
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
                yield Done(each, "kept", each.why)
                continue
            try:
                question.answer()
            except NoSuchUpload:
                yield Done(each, "gone", "it was completed or aborted meanwhile")
            except OperationError as error:
                yield Done(each, "failed", str(error) or type(error).__name__)
            else:
                yield Done(each, "aborted")


def strike(
    found: Sequence[Found], place: Place, prefix: bytes, pending: Iterable[PendingUpload]
) -> int:
    """Strike from dead mounts' journals what is pending no more; return how many. Raises OSError.

    `pending` is what there still is in the bucket `place` of keys that begin with `prefix`; of
    other buckets' and prefixes' nothing is known.
    """
    still = {(upload.key, upload.upload_id) for upload in pending}
    struck = 0
    for journal in found:
        if not journal.dead or journal.place != place:
            continue
        gone = [
            begun.upload_id
            for begun in journal.uploads.values()
            if begun.key.startswith(prefix) and (begun.key, begun.upload_id) not in still
        ]
        journal.strike(gone)
        struck += len(gone)
    return struck
