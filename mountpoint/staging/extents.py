"""Pure: which bytes of a staged file are where.

A byte of the file is one of four:

* *changed*: it was written here. It is in the local file, and in no object.
* *fetched*: the local file has a copy of what the base object has.
* *missing*: only the base object has it; the local file has a hole there.
* *zero*: it lies where the file was once cut off, or beyond the base's end, and nobody has written
  it since. The local file has a hole there too, which reads as what it should.

`sparse_file` holds the first two. The base's bytes count up to `_base_stop` only, which moves back
when the file is cut shorter and never forward: what is appended later does not bring them back.

Known in bytes, not in blocks or pages: so a write of a part of a page fetches nothing.
"""

from mountpoint.staging.range_set import Range, Ranges


class Extents:
    """A file that is as its base, an object of so many bytes; None: a new, empty one."""

    def __init__(self, base_size_bytes: int | None) -> None:
        self.size_bytes = base_size_bytes or 0
        self.changed = Ranges()  # within the file
        self.local = Ranges()  # within the file; includes `changed`
        self._base_size_bytes = base_size_bytes
        self._base_stop = self.size_bytes  # at most the file's size, and the base's

    @property
    def base_stop(self) -> int:
        """Where the bytes of the base end that are still in the file."""
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
        """Note that the file has been cut off, or continued with zeros."""
        if size_bytes < self.size_bytes:
            self.changed.remove(size_bytes, self.size_bytes)
            self.local.remove(size_bytes, self.size_bytes)
            self._base_stop = min(self._base_stop, size_bytes)
        self.size_bytes = size_bytes

    def missing(self, start: int, stop: int) -> list[Range]:
        """Return what of [start, stop) only the base has."""
        return self.local.gaps(start, min(stop, self._base_stop))

    def unchanged(self) -> list[Range]:
        """Return what is as in the base, local or not."""
        return self.changed.gaps(0, self._base_stop)

    def fetched(self, start: int, stop: int) -> None:
        """Note that what was missing has been fetched."""
        self.local.add(start, stop)

    def clean(self) -> list[Range]:
        """Return what is local and could be fetched again."""
        return [
            gap
            for start, stop in self.local.within(0, self._base_stop)
            for gap in self.changed.gaps(start, stop)
        ]

    def dropped(self, start: int, stop: int) -> None:
        """Note that what was clean is in the local file no more."""
        self.local.remove(start, stop)

    def rebase(self) -> None:
        """Note that an object has become what the file is now: it is the base."""
        self.local.add(self._base_stop, self.size_bytes)  # zeros: a hole reads as the object does
        self.changed = Ranges()
        self._base_size_bytes = self._base_stop = self.size_bytes

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        for ranges in (self.changed, self.local):
            ranges.check()
            assert all(0 <= start < stop <= self.size_bytes for start, stop in ranges)
        assert all(self.local.gaps(start, stop) == [] for start, stop in self.changed)
        assert self._base_stop <= min(self.size_bytes, self._base_size_bytes or 0)
