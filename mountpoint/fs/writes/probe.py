"""Check the permission to write, once per mount, when a program opens its first file for writing.

Shells ignore what close(2) returns. Without s3:PutObject `echo a > f` would end with exit code 0,
although nothing is stored: the PUT comes with the close. So the first open(2) for writing sends one
request that needs s3:PutObject and changes nothing: CompleteMultipartUpload with an upload id that
does not exist. S3 checks permissions first, so it answers AccessDenied (403) or NoSuchUpload (404).
https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html

A policy may deny requests that lack a header, such as the encryption, which only the first request
of an upload carries. So AccessDenied counts only if CreateMultipartUpload is denied as well; an
upload that this begins is aborted. A 403 without S3's error document comes from something between
us and S3 that may let a PUT pass: it proves nothing, so the open goes on.

Any other answer counts as permission, even a failure: the upload itself then has to show it. A
policy may cover only some of the keys. So an upload that S3 denies withdraws the permission
(`Uploads`).
"""

import functools
from collections.abc import Callable
from concurrent.futures import Future

from mountpoint.errors import AccessDenied, CredentialsEnded, CredentialsUnavailable, S3Error
from mountpoint.s3.client import Condition, ObjectClient, PartDone, PutOptions, Written
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.uploads import Uploads

#: No store makes such an id. The ETag is that of an empty part.
NO_UPLOAD = "mount-s3-none"
NO_PARTS = [PartDone(1, '"d41d8cd98f00b204e9800998ecf8427e"')]

HINT = "the credentials need s3:PutObject for this key"


class WriteProof:
    """Checks once whether a mount may write objects. Thread-safe; its callers wait."""

    def __init__(self, client: ObjectClient, uploads: Uploads, retry_policy: RetryPolicy) -> None:
        # dependencies
        self._client = client
        self._uploads = uploads
        self._retry_policy = retry_policy

    def require(self, key: bytes, condition: Condition) -> None:
        """Raise AccessDenied if this object may not be written. Asks until one object may."""
        if self._uploads.may_write:
            return
        start = functools.partial(
            self._client.complete_upload,
            key,
            NO_UPLOAD,
            NO_PARTS,
            size_bytes=0,
            checksum=None,
            condition=condition,
        )
        try:
            self._ask(start)
        except AccessDenied as error:
            if self._is_final(error) and not self._may_begin(key):
                if error.code == "AccessDenied":
                    error.hint = HINT
                raise
        except S3Error:
            pass  # such as NoSuchUpload
        self._uploads.may_write = True

    def _ask(self, start: "Callable[[], Future[Written]]") -> None:
        """Send the request once: a store that cannot answer it must not delay programs."""
        future = start()
        try:
            future.result(self._retry_policy.once_s)
        except TimeoutError:
            future.cancel()
        except CredentialsEnded:  # it is worth waiting for new ones
            self._retry_policy.ask(start).answer()

    def _is_final(self, error: AccessDenied) -> bool:
        """Whether S3 itself has denied it, or there are no credentials to sign with."""
        return bool(error.code) or isinstance(error, CredentialsUnavailable)

    def _may_begin(self, key: bytes) -> bool:
        """Whether S3 lets an upload begin with the headers of this mount's uploads."""
        options = self._uploads.encrypted(PutOptions())
        try:
            start = functools.partial(self._client.create_upload, key, options)
            upload_id = self._retry_policy.ask(start).answer()
        except AccessDenied:
            return False
        except S3Error:
            return True
        self._uploads.multipart_begun(key, upload_id)
        self._uploads.abort_unused(key, upload_id)
        return True
