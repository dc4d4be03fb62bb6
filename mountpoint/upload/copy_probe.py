"""Test once whether a store copies parts into an upload that has checksums, before it matters.

S3 computes the checksum of a part that it copies. MinIO refuses such a part, as if bytes had been
sent without their checksum; by then bytes of the same upload may have no other copy. So before
the first file is built from copies, an upload is begun, a part copied into it, and the upload
aborted: three requests, and no visible object. A store that copies no parts at all shows that as
well. AWS is not tested.
"""

import functools

import structlog

from mountpoint.config import MIN_PART_BYTES
from mountpoint.errors import ChecksumsNotOffered, S3Error
from mountpoint.s3.client import ChecksumName, ObjectClient, ObjectInfo, PutOptions
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.uploads import Uploads

log = structlog.get_logger(__name__)


class CopyTrial:
    """Finds out once whether the store does so. Thread-safe; its callers wait."""

    def __init__(self, client: ObjectClient, uploads: Uploads, retry_policy: RetryPolicy) -> None:
        # dependencies
        self._client = client
        self._uploads = uploads
        self._retry_policy = retry_policy

    def takes_checksums(self, source: ObjectInfo, name: ChecksumName) -> bool:
        """Whether parts of this object may be copied into an upload with such checksums."""
        capabilities = self._client.capabilities
        if source.size_bytes <= MIN_PART_BYTES or not capabilities.checksums:
            return True  # no part of it is copied, or there are no checksums
        if capabilities.copies_parts is False:
            return True
        if capabilities.copies_with_checksums is None:
            capabilities.copies_with_checksums = self._try(source, name)
        return capabilities.copies_with_checksums is not False

    def _try(self, source: ObjectInfo, name: ChecksumName) -> bool | None:
        """Try to copy a part; None if the answer says nothing."""
        options = self._uploads.encrypted(PutOptions(checksum=name))
        try:
            start = functools.partial(self._client.create_upload, source.key, options)
            upload_id = self._retry_policy.ask(start).answer()
        except S3Error:
            return None
        self._uploads.multipart_begun(source.key, upload_id)
        try:
            copy = functools.partial(
                self._client.copy_part,
                source.key,
                source.key,
                upload_id,
                1,
                0,
                MIN_PART_BYTES,
                source_etag=source.etag,
                checksum=name,
            )
            self._retry_policy.ask(copy).answer()
            self._client.capabilities.copies_parts = True
            return True
        except ChecksumsNotOffered as error:
            log.info(
                "the store cannot copy parts into uploads with checksums: "
                "files made of copied parts have none",
                reason=str(error),
            )
            return False
        except S3Error as error:
            return True if self._client.capabilities.refused_copied_part(error) else None
        finally:
            self._uploads.abort_unused(source.key, upload_id)
