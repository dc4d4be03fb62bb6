"""All domain errors, and the one table that maps an error to its errno and log level (`OUTCOMES`).

Two families:

* `MountError`: mounting cannot go on. It says what happened, why, and what to do; the command line
  prints it and exits with 1.
* `OperationError`: one file system operation failed. Code anywhere below `operations.py` raises it;
  the wrapper there looks it up in `OUTCOMES`, logs one line and answers with the errno. `S3Error`
  and its subclasses are the operation errors that S3 causes.

A new error gets a class here and a row in `OUTCOMES`. Without a row it has that of its nearest
ancestor.
"""

import errno
import logging
from typing import NamedTuple, TypeVar

#: The errno of all operations on a mount whose process is gone.
DISCONNECTED = errno.ENOTCONN
#: The errno of an operation that was in progress when the process went.
ABORTED = errno.ECONNABORTED


class MountError(Exception):
    """Mounting cannot go on.

    `what` says what is wrong and why, in one line; `hint` says what to do.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n{self.hint}" if self.hint else self.what


class OperationError(Exception):
    """One file system operation failed. `hint` names what would allow it."""

    hint = ""

    def __init__(self, reason: str = "", hint: str = "") -> None:
        super().__init__(reason)
        if hint:
            self.hint = hint


class NoSuchEntry(OperationError):
    """No object and no common prefix has this name. That may be cached for `ttl_s` seconds."""

    def __init__(self, reason: str = "", *, ttl_s: float = 0.0) -> None:
        super().__init__(reason)
        self.ttl_s = ttl_s


class NameTooLong(OperationError):
    """A name longer than 255 bytes, the limit of Linux."""


class NotADirectory(OperationError):
    """A directory operation on a file."""


class IsADirectory(OperationError):
    """A file operation on a directory."""


#: The start of the hint of a refusal that no option lifts; a reason or advice follows.
NO_OPTION = "no option permits it: "
#: Why a read fails whose object has another version now.
REPLACED = "the object was replaced while it was being read"


class Refusal(OperationError):
    """The mount refuses an operation that other file systems may allow.

    `hint` names the option that allows it. If there is none, `hint` begins with `NO_OPTION`.
    """

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason, hint)


class NotPermitted(Refusal):
    """The operation is not allowed, by an option or in the present state."""


class EntryExists(OperationError):
    """The name exists already."""


class DirectoryNotEmpty(OperationError):
    """The directory is not empty."""


class NotReplaceable(Refusal, EntryExists):
    """A file may not replace another one."""


class BadArgument(Refusal):
    """The operation cannot be done with this argument."""


class NotImplementedHere(Refusal):
    """The operation needs an option."""


class BadHandle(OperationError):
    """A file or directory handle that is not open."""


class StaleInode(OperationError):
    """The inode's version is no longer the newest: the kernel must look the name up again."""


class Superseded(StaleInode):
    """Other programs have the inode open: a new lookup finds another inode for the writer."""


class NotSequential(Refusal):
    """A write that does not begin where the last one ended: uploads are sequential."""

    def __init__(
        self, reason: str, hint: str = "mount with --staged-writes DIR to write in any order"
    ) -> None:
        super().__init__(reason, hint)


class UploadEnding(NotSequential):
    """A write to an upload that is being completed. Another upload can begin where it ends."""


class WriterKilled(OperationError):
    """The process that wrote a file was killed before it closed the file: nothing is uploaded."""


class MaybeDone(OperationError):
    """The process that served the operation died: it may have been carried out, or not."""


class StagingFull(OperationError):
    """The staging disk has no room for what is written."""

    hint = "close files that were written, free space on that disk, or raise --staged-limit"


class StagingFault(OperationError):
    """The staging disk has failed."""


class FileDamaged(OperationError):
    """A file was read to the end and does not match the checksum of the object."""

    hint = "open the file again to fetch it again; --read-checksums off reads without comparing"


class ObjectArchived(OperationError):
    """The object is in an archive storage class and has not been restored."""

    hint = "restore it first: aws s3api restore-object"


class Interrupted(OperationError):
    """The mount is going away; all waits end."""


class S3Error(OperationError):
    """S3 refused a request or did not answer it.

    `code` is S3's own error code ("NoSuchKey"), `status` the HTTP status (0: no answer), and
    `request_id` the id that AWS support asks for. Two attributes belong to the class: `retryable`
    says whether the same request may succeed a moment later; `max_tries` limits the tries of an
    error that is unlikely to go away, even if there is time for more.
    """

    retryable = False
    max_tries: int | None = None

    def __init__(
        self,
        reason: str = "",
        *,
        code: str = "",
        status: int = 0,
        request_id: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(reason, hint)
        self.code = code
        self.status = status
        self.request_id = request_id


E = TypeVar("E", bound=S3Error)


def restated(error: S3Error, kind: type[E], reason: str, hint: str = "") -> E:
    """Return an error of another kind or text for the same answer of S3."""
    return kind(
        reason, code=error.code, status=error.status, request_id=error.request_id, hint=hint
    )


class NotFound(S3Error):
    """404: no such key."""


class BucketNotFound(S3Error):
    """404 with the code NoSuchBucket."""


class AccessDenied(S3Error):
    """403: the credentials do not allow the request, or are wrong."""


class CredentialsUnavailable(AccessDenied):
    """There are no credentials to sign with, or they have expired."""


class CredentialsEnded(CredentialsUnavailable):
    """The credentials have expired, and new ones are being fetched."""

    retryable = True


class PreconditionFailed(S3Error):
    """412: the object is not the expected version, or not absent."""


class AlreadyExists(PreconditionFailed):
    """412 to If-None-Match: another client has created the object in the meantime."""


class WrongOffset(PreconditionFailed):
    """400: an append that does not begin where the object ends."""


class Contended(S3Error):
    """409: another request for the same key came at the same time."""

    retryable = True


class NoSuchUpload(S3Error):
    """404: the multipart upload was completed, or aborted by another client."""


class TooLarge(S3Error):
    """The object would be larger than S3 allows."""


class OutOfSpace(S3Error):
    """The store is full, or a quota is used up."""


class NotOffered(S3Error):
    """501: the server does not support something in the request."""


class ChecksumsNotOffered(NotOffered):
    """400 or 501: the server refuses checksum headers."""


class WrongRegion(S3Error):
    """The bucket is in another region: `region`, or "" if the answer did not name it."""

    def __init__(self, reason: str = "", *, region: str = "", **details: str | int) -> None:
        super().__init__(reason, **details)  # type: ignore[arg-type]
        self.region = region


class Redirected(S3Error):
    """3xx to a host other than S3's own: `location` is its URL, without a path."""

    def __init__(self, reason: str = "", *, location: str, **details: str | int) -> None:
        super().__init__(reason, **details)  # type: ignore[arg-type]
        self.location = location


class Throttled(S3Error):
    """503 SlowDown, 429: S3 asks for fewer requests."""

    retryable = True


class ServerFault(S3Error):
    """Any other 5xx."""

    retryable = True


class TransportFault(S3Error):
    """No complete answer: name resolution, connection or TLS failed, or the connection broke."""

    retryable = True


class Stalled(TransportFault):
    """One try took longer than its deadline and was cancelled."""


class ChecksumMismatch(TransportFault):
    """A body does not match its checksum: it was changed on the way."""

    hint = "--read-checksums off reads without comparing"


class BadDigest(TransportFault):
    """The server received corrupted data."""


class BadAnswer(S3Error):
    """An invalid answer: wrong length, malformed XML, missing headers."""

    retryable = True


class Unusable(BadAnswer):
    """An answer that lacks what reads rely on. Usually the store, or a proxy, always answers so."""

    hint = "a proxy may change answers: mount-s3 --check reads a byte and shows details"
    max_tries = 3


class Outcome(NamedTuple):
    errno: int
    level: int


#: The one table. Ordinary programs get ENOENT and ESTALE every day, so these are logged at debug
#: level. Errors that an operator should see are warnings.
OUTCOMES: dict[type[Exception], Outcome] = {
    NoSuchEntry: Outcome(errno.ENOENT, logging.DEBUG),
    NameTooLong: Outcome(errno.ENAMETOOLONG, logging.DEBUG),
    NotADirectory: Outcome(errno.ENOTDIR, logging.DEBUG),
    IsADirectory: Outcome(errno.EISDIR, logging.DEBUG),
    NotPermitted: Outcome(errno.EPERM, logging.WARNING),
    EntryExists: Outcome(errno.EEXIST, logging.DEBUG),
    NotReplaceable: Outcome(errno.EEXIST, logging.WARNING),
    DirectoryNotEmpty: Outcome(errno.ENOTEMPTY, logging.DEBUG),
    BadArgument: Outcome(errno.EINVAL, logging.WARNING),
    NotImplementedHere: Outcome(errno.ENOSYS, logging.WARNING),
    BadHandle: Outcome(errno.EBADF, logging.WARNING),
    StaleInode: Outcome(errno.ESTALE, logging.DEBUG),
    NotSequential: Outcome(errno.EINVAL, logging.WARNING),
    WriterKilled: Outcome(errno.EIO, logging.WARNING),
    MaybeDone: Outcome(errno.EIO, logging.WARNING),
    StagingFull: Outcome(errno.ENOSPC, logging.WARNING),
    StagingFault: Outcome(errno.EIO, logging.WARNING),
    FileDamaged: Outcome(errno.EIO, logging.WARNING),
    ObjectArchived: Outcome(errno.EACCES, logging.WARNING),
    Interrupted: Outcome(errno.EIO, logging.INFO),
    NotFound: Outcome(errno.ENOENT, logging.WARNING),
    BucketNotFound: Outcome(errno.ENOENT, logging.WARNING),
    AccessDenied: Outcome(errno.EACCES, logging.WARNING),
    PreconditionFailed: Outcome(errno.ESTALE, logging.WARNING),
    AlreadyExists: Outcome(errno.EEXIST, logging.WARNING),
    TooLarge: Outcome(errno.EFBIG, logging.WARNING),
    OutOfSpace: Outcome(errno.ENOSPC, logging.WARNING),
    NotOffered: Outcome(errno.ENOTSUP, logging.WARNING),
    S3Error: Outcome(errno.EIO, logging.WARNING),
    Exception: Outcome(errno.EIO, logging.ERROR),
}


def outcome(error: Exception) -> Outcome:
    """Return the errno and log level of `error`: the row of its nearest ancestor."""
    for ancestor in type(error).__mro__:
        if ancestor in OUTCOMES:
            return OUTCOMES[ancestor]
    raise AssertionError("unreachable: Exception has a row")


def staging_error(error: OSError) -> OperationError:
    """Return the error for the writer, from an error of the disk where files are staged."""
    reason = f"the staging directory: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StagingFull(reason)
    if error.errno == errno.EFBIG:
        return TooLarge(
            f"{reason}: larger than its file system permits for one file",
            hint="use --staged-writes with a directory on a file system that permits larger files",
        )
    return StagingFault(reason)
