"""The attributes of a streamed file, until its object has them."""

import time
from dataclasses import replace

from mountpoint.copy.metadata import check_size
from mountpoint.fs.posix_metadata import FileAttributes, formatted, parsed
from mountpoint.fs.setattr import AttributeStore
from mountpoint.s3.client import ObjectInfo, PutOptions
from mountpoint.upload.sequential import SequentialUpload


class StreamedAttributes:
    """Mode, owners and time of a streamed file. Its `StreamedWriter` takes care of threads.

    `kept` are the attributes that the object is to keep, with the time that was set last.
    `mtime_ns` is the time of the last write, or as it was set.
    """

    def __init__(
        self, store: AttributeStore, kept: FileAttributes, base: ObjectInfo | None
    ) -> None:
        # dependencies
        self._store = store
        # mutable
        self.kept = kept
        self._stored = kept  # what the object has, or will have when it is uploaded
        self.mtime_ns = self._time(base)

    def note(
        self, attributes: FileAttributes, upload: SequentialUpload | None, size_bytes: int
    ) -> None:
        """Take new attributes of a file with this size, which `upload` may still carry.

        Raises NotPermitted if they can no longer be kept.
        """
        if self._store.keeps:
            noted = self.kept.updated(attributes)
            timeless = replace(noted, mtime_ns=None)  # its time may change: writing may go on
            if upload is not None and upload.add_metadata(formatted(timeless)):
                self._stored = timeless
            else:
                check_size(size_bytes)
            self.kept = noted
        if attributes.mtime_ns is not None:
            self.mtime_ns = attributes.mtime_ns

    def forget_time(self) -> None:
        """Forget a time that was set: the file is cut to nothing."""
        self.kept = replace(self.kept, mtime_ns=None)

    # --- uploads ---

    def of_new(self) -> dict[str, str]:
        """Return the metadata of an upload without a base."""
        self._stored = self.kept
        return formatted(self.kept)

    def on_base(self, options: PutOptions) -> PutOptions:
        """Return the options of an upload on a base; `options` are the base's."""
        options, self._stored, self.kept = self._store.on_base(
            options, self._stored, self.kept, None
        )
        return options

    def send_with(self, upload: SequentialUpload) -> None:
        """Send the attributes with an upload that ends, if that is still possible."""
        if self._store.keeps:
            noted = replace(self.kept, mtime_ns=self.mtime_ns)
            if upload.add_metadata(formatted(noted)):
                self._stored = noted

    # --- objects ---

    def left(self) -> FileAttributes | None:
        """Return the attributes that a complete upload has yet to get; None: none are left."""
        wanted = self.kept
        if wanted.mtime_ns != self.mtime_ns:  # something was written after it was set
            wanted = replace(wanted, mtime_ns=None)
        return wanted if self._store.is_more(self._stored, wanted) else None

    def added(self, info: ObjectInfo) -> ObjectInfo:
        """Give the object the attributes that did not go with its upload; return the new object.

        This is tried once, whatever it raises: the object itself is complete.
        """
        wanted = self.left()
        if wanted is None:
            return info
        self._stored = self._stored.updated(wanted)
        return self._store.keep(info, wanted)

    def became(self, info: ObjectInfo) -> None:
        """Note that the object was given others."""
        self.kept = self._stored = parsed(info.metadata)
        self.mtime_ns = self._time(info)

    def _time(self, base: ObjectInfo | None) -> int:
        if base is None:
            return time.time_ns()
        return base.mtime_ns if self.kept.mtime_ns is None else self.kept.mtime_ns
