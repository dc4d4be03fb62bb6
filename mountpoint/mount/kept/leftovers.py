"""Abort the uploads of processes that have died, when another one goes on with their mount.

Nobody else completes them, and their parts cost money. Without a keeper that is left to
`mount-s3ctl cleanup`. The session's log names the processes whose uploads may be left: if this one
dies, too, the next one aborts them.
"""

from functools import partial
from pathlib import Path

import structlog

from mountpoint.errors import NoSuchUpload, OperationError, S3Error
from mountpoint.fs.session.log import SessionLog
from mountpoint.s3.client import ObjectClient
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.pending_journal import BucketAddress, journals

log = structlog.get_logger(__name__)

#: How long to wait before S3 is asked again that did not answer, in seconds.
AGAIN_S = 10.0

#: The kind of the session's records of dead processes, by their pids.
RECORD = "died"


def abort_uploads_of_the_dead(
    session: SessionLog,
    directory: Path,
    address: BucketAddress,
    client: ObjectClient,
    retry_policy: RetryPolicy,
) -> None:
    """Abort what the journals of the dead processes of a mount name.

    `directory` has the journals. As long as S3 does not answer, this tries again, until the mount
    ends. Logs failures, and raises nothing.
    """
    for pid in session.records(RECORD):
        while not _aborted(pid, directory, address, client, retry_policy):
            if retry_policy.stopping.wait(AGAIN_S):
                return
        session.drop(RECORD, pid)


def _aborted(
    pid: int,
    directory: Path,
    address: BucketAddress,
    client: ObjectClient,
    retry_policy: RetryPolicy,
) -> bool:
    """Try to abort them; return False if it is worth another try."""
    answered = True
    try:
        with journals(directory) as found:
            for journal in found:
                if not journal.dead or journal.pid != pid or journal.address != address:
                    continue
                aborted = []
                for upload in journal.uploads.values():
                    abort = partial(client.abort_upload, upload.key, upload.upload_id)
                    try:
                        retry_policy.ask(abort).answer()
                    except NoSuchUpload:
                        pass
                    except OperationError as error:
                        if isinstance(error, S3Error) and error.retryable:
                            log.info("uploads cannot be aborted yet", reason=str(error))
                            answered = False
                            break
                        log.warning("an unfinished upload was left", reason=str(error))
                        continue
                    aborted.append(upload.upload_id)
                journal.strike(aborted)
                if aborted:
                    log.info("unfinished uploads aborted", number=len(aborted))
    except OSError as error:
        log.warning("unfinished uploads were left", reason=error.strerror)
    return answered
