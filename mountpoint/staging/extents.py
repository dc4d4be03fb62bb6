"""Pure: where the bytes of a staged file are.

Each byte of the file is one of four:

* *changed*: it was written here. It is in the local file, and in no object.
* *fetched*: the local file has a copy of the base object's byte.
* *missing*: only the base object has it; the local file has a hole there.
* *zero*: the file was once cut off before it, or it lies beyond the base's end, and it was not
  written since. The local file has a hole there too, which reads as zeros.

`sparse_file` holds the first two. The base's bytes count up to `_base_stop` only. That moves back
when the file is cut, and never forward: a later append does not bring the bytes back.

Extents count bytes, not blocks or pages, so a write of a part of a page fetches nothing.
"""

from mountpoint.staging.range_set import Range, Ranges


class Extents:
    """A file that equals its base, an object of `base_size_bytes`; None: a new, empty file."""

    def __init__(self, base_size_bytes: int | None) -> None:
        self.size_bytes = base_size_bytes or 0
        self.changed = Ranges()  # within the file
        self.local = Ranges()  # within the file; includes `changed`
        self._base_size_bytes = base_size_bytes
        self._base_stop = self.size_bytes  # at most the file's size, and the base's

    @property
    def base_stop(self) -> int:
        """The end of those bytes of the base that are still in the file."""
        return self._base_stop

    @property
    def dirty(self) -> bool:
        """Whether the file differs from its base, or has none."""
        return (
            self._base_size_bytes != self.size_bytes
            or self._base_stop != self.size_bytes
            or len(self.changed) > 0
        )

    def write(self, start: int, stop: int) -> None:
        """Note that [start, stop) has been written."""
        if start < stop:
            self.changed.add(start, stop)
            self.local.add(start, stop)
            self.size_bytes = max(self.size_bytes, stop)

    def truncate(self, size_bytes: int) -> None:
        """Note that the file has been cut off, or extended with zeros."""
        if size_bytes < self.size_bytes:
            self.changed.remove(size_bytes, self.size_bytes)
            self.local.remove(size_bytes, self.size_bytes)
            self._base_stop = min(self._base_stop, size_bytes)
        self.size_bytes = size_bytes

    def missing(self, start: int, stop: int) -> list[Range]:
        """Return the ranges of [start, stop) that only the base has."""
        return self.local.gaps(start, min(stop, self._base_stop))

    def unchanged(self) -> list[Range]:
        """Return the ranges that equal the base, local or not."""
        return self.changed.gaps(0, self._base_stop)

    def fetched(self, start: int, stop: int) -> None:
        """Note that a missing range has been fetched."""
        self.local.add(start, stop)

    def clean(self) -> list[Range]:
        """Return the local ranges that could be fetched again."""
        return [
            gap
            for start, stop in self.local.within(0, self._base_stop)
            for gap in self.changed.gaps(start, stop)
        ]

    def dropped(self, start: int, stop: int) -> None:
        """Note that a clean range is no longer in the local file."""
        self.local.remove(start, stop)

    def rebase(self) -> None:
        """Note that an object equals the file now: it is the new base."""
        self.local.add(self._base_stop, self.size_bytes)  # also the zeros: a hole reads as they do
        self.changed = Ranges()
        self._base_size_bytes = self._base_stop = self.size_bytes

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        for ranges in (self.changed, self.local):
            ranges.check()
            assert all(0 <= start < stop <= self.size_bytes for start, stop in ranges)
        assert all(self.local.gaps(start, stop) == [] for start, stop in self.changed)
        assert self._base_stop <= min(self.size_bytes, self._base_size_bytes or 0)
