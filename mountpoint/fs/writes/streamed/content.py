"""The bytes of a streamed file: its object, and the upload that follows."""

import threading

from mountpoint.errors import NotSequential, StaleInode, TooLarge
from mountpoint.fs.inodes import Inode
from mountpoint.fs.writes.context import WriteContext, unchanged
from mountpoint.fs.writes.streamed.attributes import StreamedAttributes
from mountpoint.s3.client import Condition, ObjectInfo
from mountpoint.upload.parts import MAX_OBJECT_BYTES
from mountpoint.upload.sequential import SequentialUpload
from mountpoint.upload.upload import Upload


class StreamedContent:
    """What a streamed file consists of. Its `StreamedWriter` takes care of threads.

    Writing may go on after an upload has ended. The object, `base`, is then the beginning of
    another upload, without the zeros that filled it up to its size. A file that is opened for
    appending starts in this way; one without a base starts with an empty upload. `upload` is None
    if S3 has all bytes. `condition` is that of the next upload. `lock` guards the attributes.
    """

    def __init__(
        self,
        inode: Inode,
        context: WriteContext,
        attributes: StreamedAttributes,
        lock: threading.Lock,
        *,
        base: ObjectInfo | None,
        condition: Condition,
    ) -> None:
        # dependencies
        self._inode = inode
        self._mount = context
        self._attributes = attributes
        self._lock = lock
        # mutable
        self.base = base
        self.condition = condition
        self._on_base_bytes = 0  # how many bytes of `base` the upload begins with
        self._filled_from_bytes: int | None = None  # where the zeros begin that filled `base` up
        self._min_bytes = 0  # the size that was set: zeros fill the file up to it
        self.upload = self._begin(None) if base is None else None

    @property
    def size_bytes(self) -> int:
        """The file's size: what was written, or the size that was set if that is larger."""
        return max(self.written_bytes, self._min_bytes)

    @property
    def written_bytes(self) -> int:
        """The offset of the next write."""
        upload = self.upload
        if upload is not None:
            return upload.size_bytes
        if self._filled_from_bytes is not None:
            return self._filled_from_bytes
        return 0 if self.base is None else self.base.size_bytes

    @property
    def stored_bytes(self) -> int:
        """How many bytes from the file's beginning `base` has."""
        if self.upload is not None:
            return self._on_base_bytes
        return 0 if self.base is None else self.base.size_bytes

    @property
    def pending_bytes(self) -> int:
        """How many bytes of the file S3 does not have."""
        upload = self.upload
        return 0 if upload is None else upload.pending_bytes

    def write(self, offset: int, data: bytes) -> int:
        """Write the next bytes; return how many. Raises NotSequential, and what uploads raise.

        Zeros beyond the next byte only set the size: glibc's posix_fallocate writes one zero at the
        end of each block. A write at the end of a size that was set first fills the gap with zeros.
        """
        upload = self.upload
        written_bytes = self.written_bytes
        if offset <= written_bytes:
            if upload is None:
                upload = self._go_on(offset)
            return upload.write(offset, data)
        size_bytes = max(written_bytes, self._min_bytes)
        if data.count(0) == len(data):
            self.set_size(max(size_bytes, offset + len(data)))
            return len(data)
        if upload is None:
            upload = self._go_on(offset)
        if offset == size_bytes:
            upload.extend(offset)
        return upload.write(offset, data)

    def set_size(self, size_bytes: int) -> None:
        """Set the size of the file. The caller ensures that it is at least what was written.

        Raises TooLarge above S3's limit.
        """
        if size_bytes > MAX_OBJECT_BYTES:
            raise TooLarge(f"{size_bytes} bytes; an object may have at most {MAX_OBJECT_BYTES}")
        if self.upload is None and size_bytes != self.size_bytes:
            self._go_on(self.written_bytes)
        self._min_bytes = size_bytes

    def restart(self) -> SequentialUpload | None:
        """Start again with an empty file; return the upload that the caller has to abort.

        No thread may be completing it: its object could appear after that of a later upload.
        """
        begun = self.upload
        self._min_bytes = 0
        self._on_base_bytes = 0
        self.upload = self._begin(None)
        return begun

    def finish(self, upload: SequentialUpload) -> ObjectInfo:
        """Finish an upload of this file, with the size that was set; return the new object."""
        return upload.finish(self._min_bytes)

    def stored(self, info: ObjectInfo) -> None:
        """Note that the object is `info` now, with all that was written and its attributes."""
        if self.upload is not None:
            self._filled_from_bytes = None
            if isinstance(self.upload, Upload):  # appended zeros stay
                self._filled_from_bytes = self.upload.filled_from_bytes
            self.upload = None
        self.based_on(info)

    def based_on(self, info: ObjectInfo) -> None:
        """Note that the object is `info` now, with the same bytes."""
        self.base, self.condition = info, unchanged(info)

    def rename_upload(self) -> None:
        """Give the upload the file's present key. Parts that were sent are moved at the end."""
        upload = self.upload
        if upload is not None:
            upload.rename(self._inode.key, self.condition)

    def abort(self) -> None:
        """Abort the upload of a file that could not be opened after all."""
        upload = self.upload
        if upload is not None:
            upload.abort()

    def discard(self) -> SequentialUpload | None:
        """Discard what was written; return the upload that the caller has to abort."""
        begun, self.upload = self.upload, None
        return begun

    def _go_on(self, offset: int) -> SequentialUpload:
        """Begin an upload on `base`. The kernel allows no other write to the inode meanwhile."""
        base = self.base
        if base is None:  # `discard` came first
            raise StaleInode("the file was removed")
        if offset not in (self.written_bytes, base.size_bytes):
            raise NotSequential(
                f"a write at {offset}, but the next byte to write is {self.written_bytes}"
            )
        upload = self._begin(base)
        self.upload, self._on_base_bytes = upload, offset
        if isinstance(upload, Upload):
            upload.copy(base, 0, offset)
        return upload

    def _begin(self, base: ObjectInfo | None) -> SequentialUpload:
        """Return an upload under the file's present name, with its attributes."""
        mount, key, condition = self._mount, self._inode.key, self.condition
        if mount.config.incremental_upload:
            metadata = self._attributes.of_new()
            return mount.uploads.appending(
                key, base=base, condition=condition, metadata=metadata if base is None else {}
            )
        if base is None:
            metadata = self._attributes.of_new()
            return mount.uploads.upload(key, condition=condition, metadata=metadata)
        options = mount.copies.options_of(base)
        with self._lock:
            options = self._attributes.on_base(options)
        return mount.uploads.upload(
            key, condition=condition, options=options, known_bytes=base.size_bytes
        )
