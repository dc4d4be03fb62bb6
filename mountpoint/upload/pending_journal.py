"""A journal of the multipart uploads of this machine, to find those that a dead mount left.

S3 offers no place for a mark: ListMultipartUploads returns an upload's key, id, time, initiator and
classes, but neither metadata nor tags
(https://docs.aws.amazon.com/AmazonS3/latest/API/API_MultipartUpload.html). So each process that
writes has one file in `default_directory`: a line with the bucket, then a line for each upload that
begins or ends. The file is created with the first upload, and removed when the process ends and no
upload is open.

The file is locked (flock) while its process lives; the kernel unlocks it when the process dies, in
whatever way. So a process that can lock a file knows that its mount is dead.

Each line is one write(2) without fsync: the kernel keeps the bytes if the process is killed. After
a power failure lines may be missing. The upload is also missing if its process died between S3's
answer and the line. Both cases are left to the bucket's lifecycle rule.

A journal that cannot be written never fails a write: it logs that once, and stops.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from mountpoint.config import BucketConfig
from mountpoint.system.private import WRITTEN, make_private

log = structlog.get_logger(__name__)

#: Logged if journals cannot be written. The bucket can still be mounted.
UNNOTED = (
    "uploads cannot be recorded: mount-s3ctl cleanup will not find them if this mount is killed"
)
SUFFIX = ".journal"
DRAFT = ".new"
#: Older drafts belong to a process that died between two system calls.
OLD_DRAFT_S = 86_400.0
#: The file is rewritten when this many of its lines are about ended uploads: 100 bytes and a key
#: each.
MAX_STRUCK = 2_000
#: No journal of ours becomes this large; a larger file was made by another program.
MAX_BYTES = 64 << 20


def default_directory(environ: Mapping[str, str]) -> Path:
    """Return the directory of this user's journals.

    https://specifications.freedesktop.org/basedir-spec/latest/ (XDG_STATE_HOME, which must be
    absolute). For root it is /var/lib/mount-s3, because a mount from fstab has no home.
    """
    state = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):
        return Path(state, "mount-s3")
    if os.geteuid() == 0:
        return Path("/var/lib/mount-s3")
    return Path(os.path.expanduser("~/.local/state"), "mount-s3")


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """A bucket by its name and its endpoint ("" for AWS's own)."""

    bucket: str
    endpoint_url: str = ""

    @classmethod
    def of(cls, bucket: BucketConfig) -> "BucketAddress":
        """Return the address that the options give."""
        return cls(bucket.name, (bucket.endpoint_url or "").rstrip("/"))


@dataclass(frozen=True, slots=True)
class JournaledUpload:
    """An upload that has begun and not ended, as far as its journal says."""

    key: bytes
    upload_id: str
    started_ns: int


class Journal:
    """The journal of this process. Thread-safe, and never raises."""

    def __init__(self, directory: Path, address: BucketAddress) -> None:
        # dependencies
        self._directory = directory
        # constants
        self._address = address
        name = hashlib.sha256(f"{address.endpoint_url} {address.bucket}".encode()).hexdigest()[:12]
        self._path = directory / f"{name}-{os.getpid()}-{time.time_ns()}{SUFFIX}"
        # mutable, guarded by _lock
        self._lock = threading.Lock()
        self._file: int | None = None
        self._open: dict[str, JournaledUpload] = {}
        self._struck = 0  # lines of uploads that have ended
        self._off = False

    def begun(self, key: bytes, upload_id: str) -> None:
        """Record a new upload."""
        with self._lock:
            upload = JournaledUpload(key, upload_id, time.time_ns())
            self._open[upload_id] = upload
            self._note(_begun_line(upload))

    def ended(self, upload_id: str) -> None:
        """Record that an upload is complete or aborted. An unknown id is ignored."""
        with self._lock:
            if self._open.pop(upload_id, None) is None:
                return
            self._struck += 2
            if self._struck > max(MAX_STRUCK, 2 * len(self._open)):
                self._guarded(self._rewrite)
            else:
                self._note(_ended_line(upload_id))

    def close(self) -> None:
        """Unlock the file, and remove it if no upload is open."""
        with self._lock:
            file, self._file = self._file, None
            self._off = True
            if file is None:
                return
            if not self._open:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            os.close(file)

    def _note(self, line: bytes) -> None:
        def write() -> None:
            if self._file is None:
                self._rewrite()  # includes this line if its upload is still open
            else:
                _write(self._file, line)

        self._guarded(write)

    def _guarded(self, write: Callable[[], None]) -> None:
        """Run `write`. If it fails, keep the file locked, because uploads in it are alive."""
        if self._off:
            return
        try:
            write()
        except OSError as error:
            self._off = True
            log.warning(
                UNNOTED,
                directory=str(self._directory),
                reason=error.strerror,
            )

    def _rewrite(self) -> None:
        """Write a file of the open uploads. It gets its name only once it is locked."""
        make_private(self._directory, WRITTEN)
        draft = self._path.with_suffix(DRAFT)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
        file = os.open(draft, flags, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(
                file, _first_line(self._address) + b"".join(map(_begun_line, self._open.values()))
            )
            os.rename(draft, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            os.close(file)
            raise
        if self._file is not None:
            os.close(self._file)  # and so unlock the old file, which has no name any more
        self._file, self._struck = file, 0


class FoundJournal:
    """The journal of any process. If it is `dead`, we hold its lock until `close`."""

    def __init__(self, path: Path, file: int, dead: bool, lines: Iterable[Any]) -> None:
        # constants
        self.path = path
        self.dead = dead
        self.address = BucketAddress("")
        self.pid = 0
        # mutable, by the caller that has found it
        self._file = file
        self.uploads: dict[str, JournaledUpload] = {}
        for fields in lines:
            with contextlib.suppress(UnicodeError):
                self._read(fields)

    def _read(self, fields: Any) -> None:
        """Parse one line. Lines that cannot be parsed are skipped: the last one may be cut."""
        match fields:
            case {"bucket": str(bucket), "endpoint": str(endpoint), "pid": int(pid)}:
                self.address, self.pid = BucketAddress(bucket, endpoint), pid
            case {"begun": str(upload_id), "key": str(key), "ns": int(started_ns)}:
                key_bytes = key.encode("utf-8", "surrogateescape")
                self.uploads[upload_id] = JournaledUpload(key_bytes, upload_id, started_ns)
            case {"ended": str(upload_id)}:
                self.uploads.pop(upload_id, None)

    def strike(self, upload_ids: Iterable[str]) -> None:
        """Remove ended uploads; only from a dead mount's journal. Raises OSError."""
        gone = [each for each in upload_ids if self.uploads.pop(each, None) is not None]
        if gone and self.uploads:
            # A last line that was cut has no line end.
            _write(self._file, b"\n" + b"".join(map(_ended_line, gone)))

    def close(self) -> None:
        """Unlock it. Remove the journal of a dead mount that has no uploads left."""
        if self.dead and not self.uploads:
            with contextlib.suppress(OSError):
                self.path.unlink()
        os.close(self._file)


@contextlib.contextmanager
def journals(directory: Path) -> Iterator[list[FoundJournal]]:
    """Yield all journals in a directory; close them afterwards. Raises OSError.

    A missing directory counts as empty. If two processes look at the same time, one of them takes
    dead mounts for living ones.
    """
    found: list[FoundJournal] = []
    for path in directory.glob(f"*{DRAFT}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > OLD_DRAFT_S:
                path.unlink()
    try:
        for path in sorted(directory.glob(f"*{SUFFIX}")):
            one = _open(path)
            if one is not None:
                found.append(one)
        yield found
    finally:
        for one in found:
            one.close()


def _open(path: Path) -> FoundJournal | None:
    """Open a journal, and lock it if its mount is dead.

    None if the file is gone, or another user made it. Only root reads other users' journals.
    """
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            if os.geteuid() not in (0, os.fstat(file).st_uid):
                os.close(file)
                return None
            dead = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                dead = False
            if _is_at(path, file):
                return FoundJournal(path, file, dead, _lines(file))
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # it was removed or rewritten before we had locked it


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _lines(file: int) -> Iterator[Any]:
    text = os.pread(file, MAX_BYTES, 0)
    for line in text.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(line)


def _first_line(address: BucketAddress) -> bytes:
    return _line({"bucket": address.bucket, "endpoint": address.endpoint_url, "pid": os.getpid()})


def _begun_line(upload: JournaledUpload) -> bytes:
    key = upload.key.decode("utf-8", "surrogateescape")
    return _line({"begun": upload.upload_id, "key": key, "ns": upload.started_ns})


def _ended_line(upload_id: str) -> bytes:
    return _line({"ended": upload_id})


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _write(file: int, data: bytes) -> None:
    """Write all bytes. If the disk fills up, only a part is written, which readers skip."""
    while data:
        data = data[os.write(file, data) :]
