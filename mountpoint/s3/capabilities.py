"""The features that a mount's store supports, as far as the mount knows.

Each client has one `Capabilities` object. AWS has all features. For other stores
`feature_probe` tests at mount, only by reading, the features that reads need. A missing feature of
writes shows at the first request that needs it: the store refuses the request, and this request and
all later ones do without the feature (`fallback`).
"""

from dataclasses import dataclass, field
from typing import Literal

import structlog

from mountpoint.errors import ChecksumsNotOffered, NotOffered, S3Error

log = structlog.get_logger(__name__)

#: The kinds of requests that may have a condition.
Operation = Literal["write", "copy", "delete"]

#: The features that are tested at mount (`feature_probe`).
READ_FEATURES = ("pages_by_token", "starts_after", "matches", "takes_checksum_mode")

#: The log lines for refused conditions. Before a delete HEAD has shown the version.
UNCONDITIONAL = {
    "write": "this server ignores conditions: writes by others in the meantime may be overwritten",
    "copy": "this server ignores conditions on copies: "
    "objects created by others may be overwritten",
}

#: Statuses by which servers refuse an unknown operation, besides 501.
NO_SUCH_OPERATION = (400, 405)

#: Codes by which servers refuse parts of different sizes that are all large enough. Cloudflare R2:
#: InvalidPart, "All non-trailing parts must have the same length".
UNEQUAL_PARTS = ("InvalidPart", "EntityTooSmall")


@dataclass(slots=True)
class Capabilities:
    """The features of S3 that other stores may lack. By default the store has all of them.

    Thread-safe without a lock: each field is set in a single step, and several requests in flight
    may be refused for the same reason.
    """

    # needed by reads, tested at mount
    pages_by_token: bool = True  # the store supports ListObjectsV2
    starts_after: bool = True  # LIST honours start-after
    matches: bool = True  # If-Match on a GET accepts the object's own ETag and rejects all others
    takes_checksum_mode: bool = True  # the store accepts the x-amz-checksum-mode header
    # needed by writes, found at the first use; None: not known yet
    unconditional: set[Operation] = field(default_factory=set)  # operations without conditions
    checksums: bool = True  # the store accepts checksums
    copies_parts: bool | None = True  # UploadPartCopy
    copies_with_checksums: bool | None = True  # UploadPartCopy into uploads with checksums
    equal_parts: bool | None = False  # all parts but the last must have one size

    def refused(
        self, error: S3Error, operation: Operation, *, condition: bool, checksums: bool
    ) -> bool:
        """Note what the store does not support, after it refused a request with `error`.

        `condition` and `checksums`: the request had one. Returns whether sending the request again
        without the unsupported header may succeed.
        """
        if not isinstance(error, NotOffered):
            return False
        if condition and not isinstance(error, ChecksumsNotOffered):
            if operation not in self.unconditional and operation in UNCONDITIONAL:
                log.info(UNCONDITIONAL[operation])
            self.unconditional.add(operation)
            return True
        if checksums:
            if self.checksums:
                log.warning(
                    "this server accepts no checksums: it does not verify uploads",
                    reason=str(error),
                )
            self.checksums = False
            return True
        return False

    def refused_copied_part(self, error: S3Error) -> bool:
        """Note that the store copies no parts, and return True, if `error` means that.

        If a part was copied before, the refusal has another reason.
        """
        unknown = isinstance(error, NotOffered) or (
            type(error) is S3Error and error.status in NO_SUCH_OPERATION
        )
        if not unknown or self.copies_parts:
            return False
        if self.copies_parts is None:
            log.info(
                "this server cannot copy parts of objects: "
                "the mount reads and sends these bytes again",
                reason=str(error),
            )
        self.copies_parts = False
        return True

    def took_unequal_parts(self) -> None:
        """Note that the store has accepted parts of different sizes."""
        if self.equal_parts is None:
            self.equal_parts = False

    def refused_unequal_parts(self, error: S3Error) -> bool:
        """Note that the store needs parts of one size, and return True, if `error` means that.

        `error` is the refusal of parts of different sizes. If such parts were accepted before, it
        has another reason.
        """
        if error.code not in UNEQUAL_PARTS or self.equal_parts is False:
            return False
        if self.equal_parts is None:
            log.info(
                "this server needs parts of one size: later files are uploaded in such parts",
                reason=str(error),
            )
        self.equal_parts = True
        return True
