"""Abort the uploads of a process that has died, when another one goes on with its mount.

Nobody else completes them, and their parts cost money. Without `--keep-alive` that is left to
`mount-s3ctl cleanup`.
"""

from functools import partial
from pathlib import Path

import structlog

from mountpoint.errors import NoSuchUpload, OperationError
from mountpoint.s3.client import ObjectClient
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.pending_journal import BucketAddress, journals

log = structlog.get_logger(__name__)


def abort_uploads_of(
    pid: int,
    directory: Path,
    address: BucketAddress,
    client: ObjectClient,
    retry_policy: RetryPolicy,
) -> None:
    """Abort what the journal of a dead process names. Logs failures, and raises nothing."""
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
                        log.warning("an unfinished upload was left", reason=str(error))
                        continue
                    aborted.append(upload.upload_id)
                journal.strike(aborted)
                log.info("unfinished uploads aborted", number=len(aborted))
    except OSError as error:
        log.warning("unfinished uploads were left", reason=error.strerror)
