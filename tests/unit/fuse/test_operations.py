"""The FUSE adapter: every errno, one log line per failure, and no end of the mount."""

import errno
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator, MutableMapping
from types import SimpleNamespace
from typing import Any

import llfuse
import pytest
import structlog
from structlog.testing import capture_logs

from mountpoint import errors
from mountpoint.fs import filesystem
from mountpoint.fs.inodes import ROOT, InodeNumber
from mountpoint.fs.session.log import SessionLog, new_log
from mountpoint.fuse import entries, operations
from mountpoint.fuse.operations import NEW_TTL_S, Operations
from tests.unit.fake_client import MTIME_NS, REQUEST_ID, Fault
from tests.unit.mounted import GID, UID, Mounted, mounted

UploadScheduler = MutableMapping[str, Any]
CTX = SimpleNamespace(uid=UID, gid=GID, pid=1, umask=0o022)
ATTRIBUTES = SimpleNamespace(st_size=0, st_mtime_ns=7, st_mode=0o100640, st_uid=8, st_gid=9)
FIELDS = SimpleNamespace(
    update_size=True, update_mtime=True, update_mode=True, update_uid=True, update_gid=True
)


@pytest.fixture(autouse=True)
def _logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log as structlog does by default, even if another test has bound this logger."""
    monkeypatch.setattr(operations, "log", structlog.get_logger())


class Adapter:
    """The operations of a mounted file system, called as llfuse calls them."""

    def __init__(self, world: Mounted) -> None:
        self.world = world
        self.ready = 0
        self.operations = Operations(world.fs, self._on_ready)

    def __call__(self, name: str, *args: Any) -> Any:
        """Call an operation."""
        return getattr(self.operations, name)(*args)

    def fails(self, name: str, *args: Any) -> tuple[str, UploadScheduler]:
        """Return the errno and the one log line of a failing operation."""
        with capture_logs() as lines, pytest.raises(llfuse.FUSEError) as caught:
            self(name, *args)
        (line,) = lines
        assert line["operation"] == name
        code = errno.errorcode[caught.value.errno]
        assert line["errno"] == code
        return code, line

    def look(self, name: bytes, parent: int = ROOT) -> Any:
        """Look up a name."""
        return self("lookup", parent, name, CTX)

    def _on_ready(self) -> None:
        self.ready += 1


@pytest.fixture
def adapter() -> Iterator[Adapter]:
    with mounted({b"a": b"content", b"d/b": b"1", b"e": b""}) as world:
        yield Adapter(world)


#: Every operation that can fail, with arguments, and the FileSystem method that it calls.
CALLS: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "lookup": ("lookup", (ROOT, b"a", CTX), "/a"),
    "getattr": ("getattr", (ROOT, CTX), "/"),
    "forget": ("forget", ([(InodeNumber(2), 1)],), "/"),
    "access": ("access", (ROOT, os.R_OK, CTX), "/"),
    "opendir": ("opendir", (ROOT, CTX), "/"),
    "readdir": ("readdir", (7, 0), "<handle 7>"),
    "releasedir": ("releasedir", (7,), "<handle 7>"),
    "mkdir": ("mkdir", (ROOT, b"new", 0o755, CTX), "/new"),
    "rmdir": ("rmdir", (ROOT, b"d", CTX), "/d"),
    "create": ("create", (ROOT, b"new", 0o644, os.O_WRONLY, CTX), "/new"),
    "mknod": ("create", (ROOT, b"new", stat.S_IFREG, 0, CTX), "/new"),
    "open": ("open", (ROOT, os.O_RDONLY, CTX), "/"),
    "read": ("read", (7, 0, 10), "<handle 7>"),
    "write": ("write", (7, 0, b"data"), "<handle 7>"),
    "flush": ("flush", (7,), "<handle 7>"),
    "fsync": ("fsync", (7, True), "<handle 7>"),
    "release": ("release", (7,), "<handle 7>"),
    "unlink": ("unlink", (ROOT, b"a", CTX), "/a"),
    "rename": ("rename", (ROOT, b"a", ROOT, b"new", CTX), "/a"),
    "setattr": ("set_attributes", (ROOT, ATTRIBUTES, FIELDS, None, CTX), "/"),
}

#: Every operation without an equivalent in S3, with arguments, the path of its log line, and its
#: errno.
REFUSED: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "symlink": ((ROOT, b"new", b"a", CTX), "/new", "EPERM"),
    "link": ((ROOT, ROOT, b"new", CTX), "/", "EPERM"),
    "mknod": ((ROOT, b"new", stat.S_IFIFO, 0, CTX), "/new", "EINVAL"),
}

#: Left to llfuse, which answers ENOSYS, or called only by llfuse itself.
LEFT_OUT = {"fsyncdir", "getxattr", "listxattr", "readlink", "removexattr", "setxattr"}
LEFT_OUT |= {"destroy", "stacktrace"}


@pytest.mark.parametrize(("negative_ttl_s", "told_s"), [(0.5, 0.5), (60.0, 1.0)])
def test_a_name_that_is_believed_not_to_exist(negative_ttl_s: float, told_s: float) -> None:
    """The kernel may cache an absence, but for at most a second."""
    with mounted(negative_ttl_s=negative_ttl_s) as world:
        adapter = Adapter(world)
        for _ in range(2):
            found = adapter.look(b"none")
            assert (found.st_ino, found.entry_timeout) == (0, told_s)
        assert world.client.count() == 1


def test_a_name_that_does_not_exist_now(adapter: Adapter) -> None:
    """Without a negative ttl an absence is an error, which the kernel does not cache."""
    assert adapter.fails("lookup", ROOT, b"none", CTX)[0] == "ENOENT"


def test_nothing_is_forgotten() -> None:
    """Each of llfuse's operations is implemented, refused, or deliberately left out."""
    all_ = {name for name in dir(llfuse.Operations) if not name.startswith("_")}
    assert all_ == CALLS.keys() | REFUSED.keys() | LEFT_OUT | {"init", "statfs"}
    for name in all_ - LEFT_OUT:
        assert name in vars(Operations), name
    for name in LEFT_OUT:
        assert name not in vars(Operations), name


# --- The table of errors ---


def answered(kind: type[errors.S3Error], reason: str) -> errors.S3Error:
    """Return an error of a class, with S3's details."""
    error = errors.Redirected(reason, location="") if kind is errors.Redirected else kind(reason)
    error.code, error.status, error.request_id = "SlowDown", 503, REQUEST_ID
    return error


def make(kind: type[Exception]) -> Exception:
    """Return an error of a class in the table."""
    if issubclass(kind, errors.S3Error):
        return answered(kind, "why")
    return kind("why", "hint") if issubclass(kind, errors.Refusal) else kind("why")


#: The errno for each error, and the level of its log line. This repeats `errors.OUTCOMES`, so that
#: a change there needs one here.
ERRNOS: dict[type[Exception], tuple[str, str]] = {
    errors.NoSuchEntry: ("ENOENT", "debug"),
    errors.NameTooLong: ("ENAMETOOLONG", "debug"),
    errors.NotADirectory: ("ENOTDIR", "debug"),
    errors.IsADirectory: ("EISDIR", "debug"),
    errors.NotPermitted: ("EPERM", "warning"),
    errors.EntryExists: ("EEXIST", "debug"),
    errors.NotReplaceable: ("EEXIST", "warning"),
    errors.DirectoryNotEmpty: ("ENOTEMPTY", "debug"),
    errors.BadArgument: ("EINVAL", "warning"),
    errors.NotImplementedHere: ("ENOSYS", "warning"),
    errors.BadHandle: ("EBADF", "warning"),
    errors.StaleInode: ("ESTALE", "debug"),
    errors.Superseded: ("ESTALE", "debug"),
    errors.NotSequential: ("EINVAL", "warning"),
    errors.UploadEnding: ("EINVAL", "warning"),
    errors.WriterKilled: ("EIO", "warning"),
    errors.MaybeDone: ("EIO", "warning"),
    errors.StagingFull: ("ENOSPC", "warning"),
    errors.StagingFault: ("EIO", "warning"),
    errors.FileDamaged: ("EIO", "warning"),
    errors.ObjectArchived: ("EACCES", "warning"),
    errors.Interrupted: ("EIO", "info"),
    errors.NotFound: ("ENOENT", "warning"),
    errors.BucketNotFound: ("ENOENT", "warning"),
    errors.AccessDenied: ("EACCES", "warning"),
    errors.CredentialsUnavailable: ("EACCES", "warning"),
    errors.CredentialsEnded: ("EACCES", "warning"),
    errors.PreconditionFailed: ("ESTALE", "warning"),
    errors.AlreadyExists: ("EEXIST", "warning"),
    errors.WrongOffset: ("ESTALE", "warning"),
    errors.Contended: ("EIO", "warning"),
    errors.NoSuchUpload: ("EIO", "warning"),
    errors.TooLarge: ("EFBIG", "warning"),
    errors.OutOfSpace: ("ENOSPC", "warning"),
    errors.NotOffered: ("ENOTSUP", "warning"),
    errors.ChecksumsNotOffered: ("ENOTSUP", "warning"),
    errors.WrongRegion: ("EIO", "warning"),
    errors.Redirected: ("EIO", "warning"),
    errors.Throttled: ("EIO", "warning"),
    errors.ServerFault: ("EIO", "warning"),
    errors.TransportFault: ("EIO", "warning"),
    errors.Stalled: ("EIO", "warning"),
    errors.ChecksumMismatch: ("EIO", "warning"),
    errors.BadDigest: ("EIO", "warning"),
    errors.BadAnswer: ("EIO", "warning"),
    errors.Unusable: ("EIO", "warning"),
    errors.S3Error: ("EIO", "warning"),
    Exception: ("EIO", "error"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_errno_of_every_operation(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each error gives its errno and one line of its level, from any operation."""
    method, args, path = CALLS[name]
    failure: list[Exception] = []

    def fail(*_: object, **__: object) -> None:
        raise failure[-1]

    monkeypatch.setattr(adapter.world.fs, method, fail)
    for kind, expected in ERRNOS.items():
        failure.append(make(kind))
        # An adapter logs the same refusal only once a minute.
        code, line = Adapter(adapter.world).fails(name, *args)
        assert (kind, code, line["log_level"]) == (kind, *expected)
        assert line["path"] == path, kind
        if issubclass(kind, errors.OperationError):
            assert line["event"] == "operation failed", kind
            assert line["reason"] == "why", kind
            assert "exc_info" not in line, kind
        if issubclass(kind, errors.S3Error):
            assert line["s3_code"] == "SlowDown", kind
            assert line["s3_status"] == 503, kind
            assert line["request_id"] == REQUEST_ID, kind


def test_every_error_is_in_the_table() -> None:
    """Every error class has an errno above, and so has every row of the program's table."""

    def below(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    ours = {kind for kind in below(errors.OperationError) if kind.__module__ == errors.__name__}
    assert ours - ERRNOS.keys() == {errors.OperationError, errors.Refusal}, "which are never raised"
    assert not errors.OUTCOMES.keys() - ERRNOS.keys()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "ENOSPC"),
        (errno.EDQUOT, "ENOSPC"),
        (errno.EFBIG, "EFBIG"),
        (errno.EIO, "EIO"),
        (errno.EROFS, "EIO"),
    ],
)
def test_errnos_of_the_disk_where_files_are_staged(number: int, code: str) -> None:
    """The program learns of a full disk, and of a file too large for it."""
    error = errors.staging_error(OSError(number, os.strerror(number)))
    assert errno.errorcode[errors.outcome(error).errno] == code
    assert os.strerror(number) in str(error)


BUGS = [RuntimeError("x"), KeyError("x"), OSError(5, "x"), MemoryError(), ValueError(), EOFError()]


@pytest.mark.parametrize("name", CALLS)
def test_a_bug_is_eio_and_the_mount_goes_on(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A bug in any operation is EIO with a traceback in the log, and the mount continues."""
    method, args, _ = CALLS[name]
    for bug in BUGS:

        def fail(*_: object, bug: Exception = bug, **__: object) -> None:
            raise bug

        with monkeypatch.context() as patch:
            patch.setattr(adapter.world.fs, method, fail)
            code, line = adapter.fails(name, *args)
        assert code == "EIO", bug
        assert line["log_level"] == "error"
        assert line["exc_info"] is bug
        assert adapter.look(b"a").st_size == 7


def test_a_line_names_only_known_values(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line has no empty fields, always a reason, and the hint if there is one."""

    def fail(*_: object) -> None:
        raise errors.AccessDenied(code="AccessDenied", hint="ask the bucket's owner")

    monkeypatch.setattr(adapter.world.fs, "lookup", fail)
    _, line = adapter.fails("lookup", ROOT, b"a", CTX)
    assert dict(line) == {
        "event": "operation failed",
        "log_level": "warning",
        "operation": "lookup",
        "path": "/a",
        "errno": "EACCES",
        "reason": "AccessDenied",
        "s3_code": "AccessDenied",
        "hint": "ask the bucket's owner",
    }


@pytest.mark.parametrize("name", REFUSED)
def test_operations_without_an_equivalent_in_s3(adapter: Adapter, name: str) -> None:
    """Operations without an equivalent have the errno of AWS's mount-s3, and send no request."""
    args, path, expected = REFUSED[name]
    code, line = adapter.fails(name, *args)
    assert code == expected
    assert (line["path"], line["log_level"]) == (path, "warning")
    assert adapter.world.client.count() == 0


# --- Where the errors come from ---


def always(adapter: Adapter, error: Exception) -> None:
    adapter.world.client.script = lambda request: Fault(error=error)


Failure = Callable[[Adapter], tuple[str, UploadScheduler]]


def absent(adapter: Adapter) -> tuple[str, UploadScheduler]:
    return adapter.fails("lookup", ROOT, b"absent", CTX)


def too_long(adapter: Adapter) -> tuple[str, UploadScheduler]:
    return adapter.fails("lookup", ROOT, b"n" * 256, CTX)


def lookup_in_a_file(adapter: Adapter) -> tuple[str, UploadScheduler]:
    return adapter.fails("lookup", adapter.look(b"a").st_ino, b"b", CTX)


def opendir_of_a_file(adapter: Adapter) -> tuple[str, UploadScheduler]:
    return adapter.fails("opendir", adapter.look(b"a").st_ino, CTX)


def open_of_a_directory(adapter: Adapter) -> tuple[str, UploadScheduler]:
    return adapter.fails("open", adapter.look(b"d").st_ino, os.O_RDONLY, CTX)


def open_for_writing(adapter: Adapter) -> tuple[str, UploadScheduler]:
    return adapter.fails("open", adapter.look(b"a").st_ino, os.O_WRONLY, CTX)


def no_such_handle(adapter: Adapter) -> tuple[str, UploadScheduler]:
    return adapter.fails("read", 99, 0, 10)


def no_such_inode(adapter: Adapter) -> tuple[str, UploadScheduler]:
    return adapter.fails("getattr", 99, CTX)


def replaced(adapter: Adapter) -> tuple[str, UploadScheduler]:
    number = adapter.look(b"a").st_ino
    adapter.world.client.put(b"a", b"new content")
    return adapter.fails("open", number, os.O_RDONLY, CTX)


def replaced_while_open(adapter: Adapter) -> tuple[str, UploadScheduler]:
    adapter.world.client.put(b"a", bytes(16 << 20))
    handle = adapter("open", adapter.look(b"a").st_ino, os.O_RDONLY, CTX)
    adapter.world.client.put(b"a", b"new content")
    return adapter.fails("read", handle, 12 << 20, 10)


def deleted(adapter: Adapter) -> tuple[str, UploadScheduler]:
    number = adapter.look(b"a").st_ino
    adapter.world.client.delete(b"a")
    return adapter.fails("open", number, os.O_RDONLY, CTX)


def deleted_while_open(adapter: Adapter) -> tuple[str, UploadScheduler]:
    adapter.world.client.put(b"a", bytes(16 << 20))
    handle = adapter("open", adapter.look(b"a").st_ino, os.O_RDONLY, CTX)
    adapter.world.client.delete(b"a")
    return adapter.fails("read", handle, 12 << 20, 10)


def archived(adapter: Adapter) -> tuple[str, UploadScheduler]:
    adapter.world.client.put(b"a", b"cold", storage_class="GLACIER")
    return adapter.fails("open", adapter.look(b"a").st_ino, os.O_RDONLY, CTX)


def forbidden(adapter: Adapter) -> tuple[str, UploadScheduler]:
    always(adapter, errors.AccessDenied("no", code="AccessDenied", request_id=REQUEST_ID))
    return adapter.fails("lookup", ROOT, b"a", CTX)


def no_bucket(adapter: Adapter) -> tuple[str, UploadScheduler]:
    always(adapter, errors.BucketNotFound("no", code="NoSuchBucket", request_id=REQUEST_ID))
    handle = adapter("opendir", ROOT, CTX)
    return adapter.fails("readdir", handle, 0)


def broken_listing(adapter: Adapter) -> tuple[str, UploadScheduler]:
    adapter.world.client.inject("list", Fault(error=errors.S3Error("odd", code="InvalidArgument")))
    handle = adapter("opendir", ROOT, CTX)
    return adapter.fails("readdir", handle, 0)


def going_away(adapter: Adapter) -> tuple[str, UploadScheduler]:
    adapter.world.stopping.set()
    adapter.world.client.interrupt()
    return adapter.fails("lookup", ROOT, b"a", CTX)


@pytest.mark.parametrize(
    ("failure", "code", "path", "more"),
    [
        (absent, "ENOENT", "/absent", {"log_level": "debug"}),
        (too_long, "ENAMETOOLONG", "/" + "n" * 256, {}),
        (lookup_in_a_file, "ENOTDIR", "/a/b", {}),
        (opendir_of_a_file, "ENOTDIR", "/a", {}),
        (open_of_a_directory, "EISDIR", "/d/", {}),
        (open_for_writing, "EPERM", "/a", {"log_level": "warning"}),
        (no_such_handle, "EBADF", "<handle 99>", {}),
        (no_such_inode, "ESTALE", "<inode 99>", {}),
        (replaced, "ESTALE", "/a", {"log_level": "debug"}),
        (replaced_while_open, "ESTALE", "/a",
         {"s3_code": "PreconditionFailed", "s3_status": 412, "request_id": REQUEST_ID}),
        (deleted, "ENOENT", "/a", {"log_level": "debug"}),
        (deleted_while_open, "ENOENT", "/a",
         {"s3_code": "NoSuchKey", "s3_status": 404, "request_id": REQUEST_ID}),
        (archived, "EACCES", "/a", {"hint": "restore it first: aws s3api restore-object"}),
        (forbidden, "EACCES", "/a", {"s3_code": "AccessDenied", "request_id": REQUEST_ID}),
        (no_bucket, "ENOENT", "/", {"s3_code": "NoSuchBucket", "log_level": "warning"}),
        (broken_listing, "EIO", "/", {"s3_code": "InvalidArgument", "log_level": "warning"}),
        (going_away, "EIO", "/a", {"log_level": "info"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)  # fmt: skip
def test_failures(
    adapter: Adapter, failure: Failure, code: str, path: str, more: dict[str, Any]
) -> None:
    """Each failure has its errno, and one line with the path and the reason."""
    answered, line = failure(adapter)
    assert answered == code
    assert line["path"] == path
    assert more.items() <= line.items()


@pytest.mark.parametrize("error", [errors.ServerFault, errors.Throttled, errors.TransportFault])
@pytest.mark.parametrize("where", ["lookup", "open", "read", "readdir"])
def test_errors_that_no_retry_helps(error: type[errors.S3Error], where: str) -> None:
    """Throttling and server faults are retried, and finally EIO with S3's code, never ENOENT."""
    with mounted({b"a": b"1" * (16 << 20)}, total_s=1.0) as world:
        adapter = Adapter(world)
        number = adapter.look(b"a").st_ino
        if where == "read":
            handle = adapter("open", number, os.O_RDONLY, CTX)
        directory = adapter("opendir", ROOT, CTX)
        always(adapter, answered(error, "no"))
        before = world.client.count()
        match where:
            case "lookup":
                world.pass_s(1.0)
                code, line = adapter.fails("lookup", ROOT, b"a", CTX)
            case "open":
                code, line = adapter.fails("open", number, os.O_RDONLY, CTX)
            case "read":
                code, line = adapter.fails("read", handle, 12 << 20, 10)
            case _:
                code, line = adapter.fails("readdir", directory, 0)
        assert code == "EIO"
        assert (line["s3_code"], line["request_id"]) == ("SlowDown", REQUEST_ID)
        assert world.client.count() > before + 1


# --- Answers without failures ---


def test_attributes(adapter: Adapter) -> None:
    """stat(2) shows size, blocks of 512 bytes, times, mode, owner and links, with their ttl."""
    entry = adapter.look(b"a")
    assert (entry.st_size, entry.st_blocks, entry.st_blksize) == (7, 1, 4096)
    assert entry.st_mode == stat.S_IFREG | 0o644
    assert (entry.st_uid, entry.st_gid, entry.st_nlink) == (UID, GID, 1)
    assert entry.st_mtime_ns == entry.st_ctime_ns == entry.st_atime_ns == MTIME_NS
    assert (entry.attr_timeout, entry.entry_timeout) == (0.75, 0.75)
    again = adapter("getattr", entry.st_ino, CTX)
    assert (again.st_ino, again.st_size) == (entry.st_ino, 7)
    directory = adapter.look(b"d")
    assert (directory.st_mode, directory.st_nlink) == (stat.S_IFDIR | 0o755, 2)
    assert adapter.look(b"e").st_blocks == 0
    adapter.world.client.put(b"f", bytes(513))
    assert adapter.look(b"f").st_blocks == 2


def test_a_file_is_read(adapter: Adapter) -> None:
    """Open, read and release return the bytes as a buffer."""
    handle = adapter("open", adapter.look(b"a").st_ino, os.O_RDONLY, CTX)
    assert bytes(memoryview(adapter("read", handle, 0, 100))) == b"content"
    assert bytes(memoryview(adapter("read", handle, 3, 2))) == b"te"
    assert bytes(memoryview(adapter("read", handle, 7, 2))) == b""
    adapter("release", handle)
    assert adapter.fails("read", handle, 0, 1)[0] == "EBADF"
    assert adapter.world.budget.held_bytes == 0


def test_a_directory_is_read(adapter: Adapter) -> None:
    """readdir returns names, numbers with kinds, and the next position."""
    handle = adapter("opendir", ROOT, CTX)
    known = adapter.look(b"a").st_ino
    lines = adapter("readdir", handle, 0)
    assert isinstance(lines, list), "llfuse iterates over it with its lock held"
    assert [(name, after) for name, _, after in lines] == [
        (b".", 1), (b"..", 2), (b"a", 3), (b"d", 4), (b"e", 5),
    ]  # fmt: skip
    assert lines[2][1].st_ino == known
    assert [stat.S_ISDIR(entry.st_mode) for _, entry, _ in lines] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert adapter("readdir", handle, 5) == []
    adapter("releasedir", handle)
    assert adapter.fails("readdir", handle, 0)[0] == "EBADF"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Adapter, int, int, int], list[Any]]:
    """Answer a READDIRPLUS: return each entry's name, and its attributes or None."""

    def listed(adapter: Adapter, handle: int, position: int, room: int) -> list[Any]:
        told: list[bytes] = []
        monkeypatch.setattr(operations, "listing_room", lambda: room)
        monkeypatch.setattr(operations, "set_listed", told.append)
        lines = adapter("readdir", handle, position)
        assert sum(entries.size_of(name) for name, _, _ in lines) <= room
        (attributes,) = told
        size = len(entries.UNKNOWN)
        each = [attributes[start : start + size] for start in range(0, len(attributes), size)]
        assert len(each) == len(lines)
        return [
            (line[0], None if found == entries.UNKNOWN else found)
            for line, found in zip(lines, each, strict=True)
        ]

    return listed


def test_a_listing_with_attributes(adapter: Adapter, listed: Any) -> None:
    """They are those of a lookup; each entry counts as one. No request is sent for it."""
    handle = adapter("opendir", ROOT, CTX)
    adapter("readdir", handle, 0)
    requests = adapter.world.client.count()
    found = dict(listed(adapter, handle, 0, 4096))
    assert adapter.world.client.count() <= requests + 1  # a new listing
    assert list(found) == [b".", b"..", b"a", b"d", b"e"]
    assert found[b"."] is None
    assert found[b".."] is None
    for name in (b"a", b"d", b"e"):
        number, *_ = struct.unpack_from("<Q", found[name])
        inode = adapter.world.fs._inodes.get(number)
        assert inode.lookups == 1
        attributes = adapter.world.fs.lookup(ROOT, name)
        assert found[name] == entries.entry_out(attributes)
        adapter("forget", [(number, 2)])
        assert adapter.fails("getattr", number, CTX)[0] == "ESTALE"


@pytest.mark.parametrize("repeated", [False, True])
def test_a_write_with_append(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch, repeated: bool
) -> None:
    """It goes to the end; but one that a dead process may have carried out, to its place."""
    monkeypatch.setattr(operations, "appends", lambda: True)
    file, new = adapter("create", ROOT, b"new", 0o644, os.O_WRONLY | os.O_APPEND, CTX)
    assert adapter("write", file, 0, b"one") == 3
    monkeypatch.setattr(operations, "is_repeated", lambda: repeated)
    if repeated:
        assert adapter.fails("write", file, 7, b"two")[0] == "EINVAL"
    else:
        assert adapter("write", file, 7, b"two") == 3
        assert adapter("getattr", new.st_ino, CTX).st_size == 6


def test_a_long_listing(adapter: Adapter, listed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After many entries only those listings have attributes whose names are looked up."""
    monkeypatch.setattr(filesystem, "FEW_ENTRIES", 3)

    def known(handle: int, position: int) -> list[bytes]:
        return [name for name, found in listed(adapter, handle, position, 4096) if found]

    handle, other = (adapter("opendir", ROOT, CTX) for _ in range(2))
    adapter("readdir", handle, 0)
    assert known(handle, 3) == []
    directory = adapter.look(b"d").st_ino
    assert known(handle, 4) == [b"e"]
    adapter.look(b"b", directory)
    fs = adapter.world.fs
    # What is known of a listing does not change with the lookups in other directories.
    assert [fs.has_use_for_attributes(each, 3) for each in (handle, other)] == [True, False]
    assert fs.has_use_for_attributes(other, 2)


def test_entries_that_the_kernel_knows(adapter: Adapter, listed: Any) -> None:
    """Their attributes are left out while they are valid."""
    handle = adapter("opendir", ROOT, CTX)
    adapter("readdir", handle, 0)
    adapter.look(b"a")
    found = dict(listed(adapter, handle, 2, 4096))
    assert found[b"a"] is None
    assert found[b"e"] is not None
    adapter.world.pass_s(2.0)
    handle = adapter("opendir", ROOT, CTX)
    assert dict(listed(adapter, handle, 0, 4096))[b"a"] is not None


def test_no_more_entries_than_fit(adapter: Adapter, listed: Any) -> None:
    """The others follow in the next answer."""
    handle = adapter("opendir", ROOT, CTX)
    first = listed(adapter, handle, 0, 4 * entries.MIN_BYTES + 1)
    assert [name for name, _ in first] == [b".", b"..", b"a", b"d"]
    assert [name for name, _ in listed(adapter, handle, 4, 4 * entries.MIN_BYTES)] == [b"e"]
    assert listed(adapter, handle, 5, 4096) == []


def test_a_listed_file_that_is_being_written(adapter: Adapter, listed: Any) -> None:
    """The kernel asks for its attributes: they change."""
    new, _ = adapter("create", ROOT, b"new", 0o644, os.O_WRONLY, CTX)
    handle = adapter("opendir", ROOT, CTX)
    assert len(listed(adapter, handle, 0, 4096)) == 5
    assert listed(adapter, handle, 5, 4096) == [(b"new", None)]
    adapter("flush", new)
    adapter("release", new)


def test_attributes_that_objects_keep(listed: Any) -> None:
    """A listing does not have them, so the kernel asks for each file."""
    with mounted({b"a": b"1", b"d/b": b"2"}, attributes="keep") as world:
        adapter = Adapter(world)
        found = dict(listed(adapter, adapter("opendir", ROOT, CTX), 0, 4096))
    assert found[b"a"] is None
    assert found[b"d"] is not None


def test_access(adapter: Adapter) -> None:
    """access returns True or False, as llfuse requires."""
    number = adapter.look(b"a").st_ino
    assert adapter("access", number, os.R_OK, CTX) is True
    assert adapter("access", number, os.X_OK, CTX) is False


def test_statfs(adapter: Adapter) -> None:
    """statfs shows unlimited room and files, in 32 bits; a name has 255 bytes."""
    stats = adapter("statfs", CTX)
    assert (stats.f_bsize, stats.f_frsize) == (1 << 20, 1 << 20)
    assert stats.f_blocks == stats.f_bfree == stats.f_bavail == (1 << 31) - 1
    assert stats.f_files == stats.f_ffree == stats.f_favail == (1 << 31) - 1
    assert stats.f_namemax == 255
    assert adapter.world.client.count() == 0


def test_forget(adapter: Adapter) -> None:
    """The kernel forgets several inodes in one call; an unknown one does no harm."""
    first, second = adapter.look(b"a").st_ino, adapter.look(b"e").st_ino
    adapter("forget", [(first, 1), (12345, 3), (second, 1), (ROOT, 1)])
    for number in (first, second):
        assert adapter.fails("getattr", number, CTX)[0] == "ESTALE"
    assert adapter("getattr", ROOT, CTX).st_ino == ROOT


def test_init(adapter: Adapter) -> None:
    """After the kernel's INIT the mount is reported as ready."""
    adapter("init")
    assert adapter.ready == 1


def test_operations_in_threads(adapter: Adapter) -> None:
    """While one operation waits for S3, others are served."""
    waiting = threading.Event()
    go_on = threading.Event()
    number = adapter.look(b"a").st_ino

    def script(request: Any) -> None:
        if request.kind == "list" and not waiting.is_set():
            waiting.set()
            assert go_on.wait(60)

    adapter.world.client.script = script
    handle = adapter("opendir", ROOT, CTX)
    found: list[Any] = []
    slow = threading.Thread(target=lambda: found.append(adapter("readdir", handle, 0)))
    slow.start()
    assert waiting.wait(60)
    opened = adapter("open", number, os.O_RDONLY, CTX)
    assert bytes(adapter("read", opened, 0, 10)) == b"content"
    assert found == []
    go_on.set()
    slow.join(60)
    assert len(found[0]) == 5


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b"\x1b[31m", "ü".encode()])
def test_odd_names_in_log_lines(adapter: Adapter, name: bytes) -> None:
    """The failure of a name with any bytes is one line with a printable path."""
    code, line = adapter.fails("lookup", ROOT, name, CTX)
    assert code == "ENOENT"
    assert line["path"] == "/" + name.decode("utf-8", "backslashreplace")


def test_set_attributes_are_passed_on(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the attributes that the kernel names are set."""
    asked: list[dict[str, Any]] = []

    def note(number: InodeNumber, **what: Any) -> Any:
        asked.append(what)
        return adapter.world.fs.getattr(number)

    monkeypatch.setattr(adapter.world.fs, "set_attributes", note)
    names = {"mode": 0o640, "uid": 8, "gid": 9, "mtime_ns": 7, "size_bytes": 0}
    fields = {"mode": "mode", "uid": "uid", "gid": "gid", "mtime_ns": "mtime", "size_bytes": "size"}
    nothing = {f"update_{field}": False for field in fields.values()}
    for name, field in fields.items():
        chosen = SimpleNamespace(**nothing | {f"update_{field}": True})
        adapter("setattr", ROOT, ATTRIBUTES, chosen, 3, CTX)
        assert asked.pop() == dict.fromkeys(names) | {name: names[name], "handle": 3, "thread": 1}


def test_a_refusal_is_said_once(adapter: Adapter) -> None:
    """A repeated refusal is not logged again; another path has its own line."""
    code, line = adapter.fails("unlink", ROOT, b"a", CTX)
    assert (code, line["path"]) == ("EPERM", "/a")
    with capture_logs() as lines:
        for _ in range(10):
            with pytest.raises(llfuse.FUSEError):
                adapter("unlink", ROOT, b"a", CTX)
    assert lines == []
    assert adapter.fails("symlink", ROOT, b"b", b"to", CTX)[1]["path"] == "/b"


def test_a_new_file_is_known_for_a_moment() -> None:
    """fstat(2) of a new file needs no request for a moment; its name and its writes do."""
    with mounted() as world:
        adapter = Adapter(world)
        handle, created = adapter("create", ROOT, b"a", stat.S_IFREG | 0o644, os.O_WRONLY, CTX)
        assert (created.attr_timeout, created.entry_timeout) == (NEW_TTL_S, 0.0)
        adapter("write", handle, 0, b"12345")
        entry = adapter("getattr", created.st_ino, CTX)
        assert (entry.st_size, entry.attr_timeout) == (5, 0.0)
        adapter("flush", handle)
        adapter("release", handle)


def test_owner_and_mode_of_a_new_file() -> None:
    """A new file has the kernel's mode and the owners of its creator."""
    with mounted(attributes="keep") as world:
        adapter = Adapter(world)
        mode = stat.S_IFREG | 0o640
        handle, created = adapter("create", ROOT, b"a", mode, os.O_WRONLY, CTX)
        made = adapter("mknod", ROOT, b"b", mode, 0, SimpleNamespace(**vars(CTX) | {"uid": 5}))
        assert (created.st_mode, created.st_uid, created.st_gid) == (mode, UID, GID)
        assert (made.st_mode, made.st_uid, made.st_gid) == (mode, 5, GID)
        adapter("flush", handle)
        adapter("release", handle)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lookup", (ROOT, b"a", CTX)),
        ("mkdir", (ROOT, b"new", 0o755, CTX)),
        ("mknod", (ROOT, b"new", stat.S_IFREG | 0o644, 0, CTX)),
        ("create", (ROOT, b"new", 0o644, os.O_WRONLY, CTX)),
        ("open", (2, os.O_RDONLY, CTX)),
        ("open", (2, os.O_WRONLY | os.O_TRUNC, CTX)),
        ("opendir", (ROOT, CTX)),
        ("readdir", (1, 0)),
    ],
)
def test_killed_while_it_waits(
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: tuple[Any, ...]
) -> None:
    """If the kernel drops an answer, the lookup or handle in it is given back at once."""
    with mounted({b"a": b"content"}, allow_overwrite=True) as world:
        adapter = Adapter(world)
        fs = world.fs
        if name == "readdir":
            arguments = (adapter("opendir", ROOT, CTX), 0)
            monkeypatch.setattr(operations, "listing_room", lambda: 4096)
        looked_up = adapter.look(b"a").st_ino
        if name == "open":
            arguments = (looked_up, *arguments[1:])
        before = len(fs._files), len(fs._open_directories)
        monkeypatch.setattr(operations, "claim", lambda: False)
        monkeypatch.setattr(operations, "is_abandoned", lambda: True)
        assert adapter.fails(name, *arguments)[1]["log_level"] == "debug"
        assert (len(fs._files), len(fs._open_directories)) == before
        fs.forget(looked_up, 1)
        # The root, and a directory that was created here, are kept; no other inode is.
        assert {inode.key for inode in fs._inodes._inodes.values()} <= {b"", b"new/"}
        kept = {b"a": b"content"} | ({b"new": b""} if name == "mknod" else {})
        assert {key: world.client.content(key) for key in kept} == kept


def test_mknod_counts_one_lookup() -> None:
    """The kernel gets the new file's inode once, so it forgets it once."""
    with mounted() as world:
        adapter = Adapter(world)
        made = adapter("mknod", ROOT, b"new", stat.S_IFREG | 0o644, 0, CTX)
        adapter("forget", [(made.st_ino, 1)])
        assert len(world.fs._inodes) == 1


def test_requests_that_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead process has opened for them is closed first, so that nothing stays open."""
    file = new_log()
    try:
        with mounted({b"a": b"content"}, session=SessionLog(file, lambda file: None)) as dead:
            first = Adapter(dead)
            inode = first.look(b"a").st_ino
            calls: dict[int, tuple[Any, ...]] = {
                5: ("open", inode, os.O_RDONLY, CTX),
                6: ("create", ROOT, b"new", 0o644, os.O_WRONLY, CTX),
                7: ("opendir", ROOT, CTX),
            }
            for dead.request, call in calls.items():
                first(*call)
            log = SessionLog(file, lambda file: None)
            live = Mounted(dead.client, dead.clock, {"session": log})
            second = Adapter(live)
            monkeypatch.setattr(operations, "is_repeated", lambda: True)
            monkeypatch.setattr(operations, "request_number", lambda: live.request)
            opened = []
            for live.request, call in calls.items():
                opened.append(second(*call))
            assert live.fs.open_files() == 2
            assert len(log.records("handle")) == 2
            assert len(log.records("listing")) == 1
            reads, (writes, _), lists = opened
            assert bytes(second("read", reads, 0, 10)) == b"content"
            second("write", writes, 0, b"new")
            for name, handle in (("flush", writes), ("release", writes), ("release", reads)):
                second(name, handle)
            second("releasedir", lists)
            assert live.client.contents()[b"new"] == b"new"
            assert live.fs.open_files() == 0
    finally:
        os.close(file)
