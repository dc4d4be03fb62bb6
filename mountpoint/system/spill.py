"""Temporary files for bytes that wait for their upload when memory is short.

A temporary file has no name: no other program can open it, and it is gone when this process ends or
is killed. It is closed when nothing refers to its bytes any more.

The directory is opened before the bucket is mounted. After that its path could lead into this
mount, which would then wait for itself.
"""

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from mountpoint.system.mounts import mounts

log = structlog.get_logger(__name__)

#: The directories without TMPDIR. /tmp is often in memory.
DEFAULT_DIRECTORIES = ("/var/tmp", "/tmp")
#: File systems that keep files in memory.
IN_MEMORY = frozenset({"tmpfs", "ramfs"})


class TemporaryFile:
    """A file without a name, written from its beginning to its end."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size_bytes = 0

    def __del__(self) -> None:
        os.close(self.descriptor)

    def append(self, data: bytes | memoryview) -> None:
        """Write at the end. Raises OSError; then nothing has been appended."""
        rest, position = memoryview(data), self.size_bytes
        while rest:
            written = os.pwrite(self.descriptor, rest, position)
            rest, position = rest[written:], position + written
        self.size_bytes = position


@dataclass(slots=True)
class FileRange:
    """The bytes [start, stop) of a temporary file, which stays open as long as this exists."""

    file: TemporaryFile
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __bytes__(self) -> bytes:
        data = bytearray(len(self))
        self.read_into(memoryview(data), 0)
        return bytes(data)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with this range's bytes, starting at `offset`. Raises OSError."""
        position = self.start + offset
        while buffer:
            size = os.preadv(self.file.descriptor, [buffer], position)
            if not size:
                raise OSError("a temporary file is shorter than the data written to it")
            buffer, position = buffer[size:], position + size


def default_directories(environ: Mapping[str, str]) -> list[str]:
    """Return the directories to try: TMPDIR alone if it is set, else those on a disk."""
    chosen = environ.get("TMPDIR")
    if chosen:
        return [chosen]
    in_memory = {each.device for each in mounts() if each.kind in IN_MEMORY}
    return [each for each in DEFAULT_DIRECTORIES if _device(each) not in in_memory]


def _device(directory: str) -> str:
    try:
        device = os.stat(directory).st_dev
    except OSError:
        return ""
    return f"{os.major(device)}:{os.minor(device)}"


class Spill:
    """Creates temporary files in the first usable one of `directories`. Thread-safe."""

    def __init__(self, directories: Sequence[str]) -> None:
        # constants
        self.directory = ""
        self._descriptor = -1
        # mutable: whether it has been logged, set once by any thread
        self._logged = False
        self._complained = False
        self._reason = "no temporary directory is on a disk"
        for directory in directories:
            try:
                self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._begin()
            except OSError as error:
                self._reason = str(error)
                self.close()
            else:
                self.directory = directory
                break

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Create no more files. Existing ones stay while they are used."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def store(self, data: bytes | memoryview, file: TemporaryFile | None) -> FileRange | None:
        """Append bytes to `file`, or to a new one; None if they cannot be written.

        The first use and the first failure are logged.
        """
        if self._descriptor < 0:
            self._complain(self._reason)
            return None
        try:
            file = file or self._begin()
            start = file.size_bytes
            file.append(data)
        except OSError as error:
            self._complain(str(error))
            return None
        if not self._logged:
            self._logged = True
            log.info(
                "memory is full: written data waits in temporary files",
                directory=self.directory,
            )
        return FileRange(file, start, file.size_bytes)

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning(
                "temporary files cannot be written: "
                "files that are being written may need more memory than --memory-target",
                reason=reason,
                hint="set TMPDIR to a directory on a disk with 8 MiB of space for each open file",
            )

    def _begin(self) -> TemporaryFile:
        """Return a new file. Raises OSError."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_EXCL
        with contextlib.suppress(OSError):  # not every file system supports it
            return TemporaryFile(os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=self._descriptor))
        name = f".mount-s3-{secrets.token_hex(8)}"
        file = TemporaryFile(os.open(name, flags | os.O_CREAT, 0o600, dir_fd=self._descriptor))
        os.unlink(name, dir_fd=self._descriptor)
        return file
