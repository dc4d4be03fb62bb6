"""The extents of a staged file, compared with a file of which each byte shows its origin."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mountpoint.staging.extents import Extents
from tests.soak import examples

SPOTS = st.integers(0, 40)


class Bytewise(RuleBasedStateMachine):
    """`Extents` beside a file in which each byte shows its origin.

    Bytes of the base count from 1; 0 is zero; written bytes are 255.
    """

    @initialize(size=st.none() | st.integers(0, 40))
    def begin(self, size: int | None) -> None:
        self.extents = Extents(size)
        self.base = list(range(1, (size or 0) + 1))
        self.exists = size is not None
        self.whole = list(self.base)  # the expected content
        self.local = [0] * len(self.base)  # the sparse file

    @rule(start=SPOTS, size=st.integers(0, 20))
    def write(self, start: int, size: int) -> None:
        self.extents.write(start, start + size)
        for content in (self.whole, self.local) if size else ():
            content += [0] * (start + size - len(content))
            content[start : start + size] = [255] * size

    @rule(size=SPOTS)
    def truncate(self, size: int) -> None:
        self.extents.truncate(size)
        for content in (self.whole, self.local):
            del content[size:]
            content += [0] * (size - len(content))

    @rule(start=SPOTS, stop=SPOTS)
    def fetch(self, start: int, stop: int) -> None:
        for first, last in self.extents.missing(start, stop):
            self.local[first:last] = self.base[first:last]
            self.extents.fetched(first, last)

    @rule(chosen=st.integers(0, 3))
    def drop(self, chosen: int) -> None:
        clean = self.extents.clean()
        if chosen < len(clean):
            first, last = clean[chosen]
            self.local[first:last] = [0] * (last - first)
            self.extents.dropped(first, last)

    @rule()
    def upload(self) -> None:
        self.base = list(self.whole)
        self.exists = True
        self.extents.rebase()

    @invariant()
    def reads_as_it_should(self) -> None:
        """The local file, with missing ranges from the base, is the file."""
        extents = self.extents
        extents.check()
        assert extents.size_bytes == len(self.whole)
        read = list(self.local)
        for first, last in extents.missing(0, len(read)):
            assert read[first:last] == [0] * (last - first)
            read[first:last] = self.base[first:last]
        assert read == self.whole

    @invariant()
    def clean_is_as_the_base(self) -> None:
        """Ranges that may be dropped, or copied by the server, equal the base."""
        for first, last in self.extents.clean() + self.extents.unchanged():
            assert self.whole[first:last] == self.base[first:last]

    @invariant()
    def not_dirty_is_the_base(self) -> None:
        """A file that needs no upload equals its base."""
        if not self.extents.dirty:
            assert self.exists
            assert self.whole == self.base


TestBytewise = pytest.mark.slow(Bytewise.TestCase)
TestBytewise.settings = settings(max_examples=examples(60), stateful_step_count=25, deadline=None)
