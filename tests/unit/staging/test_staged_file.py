"""A staged file and a bytearray have the same bytes after any operations in any order."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mountpoint.errors import AccessDenied, PreconditionFailed, ServerFault, StagingFull
from mountpoint.s3.client import ObjectInfo
from mountpoint.staging import content, staged_file, upload_plan
from mountpoint.staging.journal import replay
from mountpoint.staging.staged_file import StagedFile
from tests.soak import examples
from tests.unit.staging_world import KEY, World, data_of

KIB = 1024
SPOTS = st.integers(0, 200 * KIB) | st.integers(0, 50).map(lambda block: block * 4096)
SIZES = st.integers(1, 50 * KIB) | st.just(4096)


class Staged(RuleBasedStateMachine):
    """Small blocks and parts, so that small files have many of them."""

    @initialize(size=st.none() | st.integers(0, 200 * KIB))
    def begin(self, size: int | None) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(content, "FETCH_BYTES", 16 * KIB)
        self.patch.setattr(staged_file, "PIECE_BYTES", 16 * KIB)
        self.patch.setattr(upload_plan, "MIN_PART_BYTES", 8 * KIB)
        self.patch.setattr(upload_plan, "part_size", lambda min_bytes, _: min_bytes)
        self.patch.setattr(upload_plan, "WORTH_BYTES", 12 * KIB)
        self.folder = tempfile.TemporaryDirectory()
        self.world = World(Path(self.folder.name))
        self.model = bytearray()
        self.tried: bytes | None = None  # the last upload, even if it failed
        self.salt = 0
        self.replaced = False
        base = None
        if size is not None:
            self.model += data_of(size)
            self.tried = bytes(self.model)
            base = self.world.bucket.put(self.tried)
        self.file = self.open(base)

    def open(self, base: ObjectInfo | None) -> StagedFile:
        world = self.world
        return StagedFile(
            world.area,
            KEY,
            base,
            fetch=world.bucket.fetch,
            begin=world.bucket.begin,
            part_bytes=16 * KIB,
            stopping=world.stopping,
        )

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.area.close()
            self.folder.cleanup()
            self.patch.undo()

    @rule(offset=SPOTS, size=SIZES)
    def write(self, offset: int, size: int) -> None:
        self.salt += 1
        data = data_of(size, self.salt)
        try:
            assert self.file.write(offset, data) == size
        except StagingFull:
            self.is_full(size)
            return
        self.model += bytes(max(offset + size - len(self.model), 0))
        self.model[offset : offset + size] = data

    @rule(size=SPOTS)
    def truncate(self, size: int) -> None:
        try:
            self.file.truncate(size)
        except StagingFull:
            self.is_full(0)
            return
        del self.model[size:]
        self.model += bytes(size - len(self.model))

    def is_full(self, size: int) -> None:
        """Check that there is no room, even for the copy of a kept file before a change."""
        area, file = self.world.area, self.file
        copied = file._content._local.allocated_bytes if file.failed else 0
        assert area.used_bytes + size + 8192 + copied > area.limit_bytes

    @rule()
    def revert(self) -> None:
        """The process that changed the file is killed: the file returns to its last upload."""
        if self.file.revert():
            assert self.tried is not None
            self.model = bytearray(self.tried)
        else:
            assert self.tried is None

    @rule(offset=SPOTS, size=SIZES)
    def read(self, offset: int, size: int) -> None:
        try:
            assert self.file.read(offset, size) == self.model[offset : offset + size]
        except PreconditionFailed:
            assert self.replaced

    @rule()
    def sync(self) -> None:
        if self.replaced and self.file._content.extents.dirty:
            self.refused(PreconditionFailed)
            return
        changed = self.file._content.extents.dirty
        info = self.file.sync()
        self.tried = bytes(self.model)
        assert not self.file.dirty
        if changed:
            assert info == self.world.bucket.info()
            assert self.world.bucket.objects[KEY] == self.model

    @rule(refused=st.booleans())
    def fail(self, refused: bool) -> None:
        """The upload fails: permanently, so that the file is completed, or temporarily."""
        if not self.file._content.extents.dirty or self.replaced:
            return
        failure = AccessDenied("no") if refused else ServerFault("down")
        self.world.bucket.failure = failure
        self.refused(type(failure))
        self.world.bucket.failure = None
        area = self.world.area
        if refused and area.used_bytes + self.file.size_bytes + 4096 < area.limit_bytes:
            assert self.file._content.missing(0, self.file.size_bytes) == []

    def refused(self, expected: type[Exception]) -> None:
        """Check that an upload fails, and that the error says where the file is."""
        with pytest.raises(expected) as caught:
            self.file.sync()
        self.tried = bytes(self.model)
        assert str(self.world.area.path) in getattr(caught.value, "hint", "")
        assert self.file.dirty

    @rule(size=st.integers(1, 100 * KIB))
    def reclaim(self, size: int) -> None:
        """Another file needs room."""
        before = self.world.area.used_bytes
        freed = self.file.reclaim(size)
        assert self.world.area.used_bytes == before - freed

    @rule(full=st.booleans())
    def fill_the_disk(self, full: bool) -> None:
        """There is no more room: reads store nothing, and writes fail."""
        area = self.world.area
        area.limit_bytes = area.used_bytes if full else 256 << 20

    @precondition(lambda self: self.file.base is not None)
    @rule()
    def others_replace_it(self) -> None:
        """Another client replaces the object."""
        self.salt += 1
        self.world.bucket.put(data_of(1000, self.salt))
        self.replaced = True

    @precondition(lambda self: not self.file.dirty and not self.replaced)
    @rule()
    def reopen(self) -> None:
        assert self.file.close()
        assert self.world.area.used_bytes == 0
        self.file = self.open(self.world.bucket.info())

    @invariant()
    def room_is_what_is_allocated(self) -> None:
        """The area counts the blocks of the local file, and so does the kernel."""
        if hasattr(self, "file"):
            self.file._content.extents.check()
            aside = self.file._aside
            locals_ = [self.file._content._local] + ([] if aside is None else [aside.local])
            assert self.world.area.used_bytes == sum(each.allocated_bytes for each in locals_)
            for local in locals_:
                # ext4 may count a block of the file's own map as well.
                assert local.path.stat().st_blocks * 512 <= local.allocated_bytes + 4096 * 2

    @invariant()
    def what_a_crash_leaves_is_the_file(self) -> None:
        """The local file, its journal and the base suffice to restore the file at any moment.

        So does a kept file while it is changed further.
        """
        if not hasattr(self, "file"):
            return
        assert self.file.size_bytes == len(self.model)
        data = self.file._content.path
        if data.with_suffix(".journal").exists():
            self.check_left(data, bytes(self.model))
        else:
            assert not (self.file.dirty and self.model)
        if self.file._aside is not None:
            assert self.tried is not None
            self.check_left(self.file._aside.local.path, self.tried)

    def check_left(self, data: Path, expected: bytes) -> None:
        """Check that a local file and its journal give `expected`."""
        subject, extents = replay(data.with_suffix(".journal"))
        assert subject.key == KEY
        assert subject.base_etag == (self.file.base.etag if self.file.base else None)
        left = bytearray(data.read_bytes())
        assert len(left) == len(expected) == extents.size_bytes
        missing = extents.missing(0, len(left))
        if missing and not self.replaced:
            base = self.world.bucket.objects[KEY]
            for start, stop in missing:
                left[start:stop] = base[start:stop]
        for start, stop in missing if self.replaced else ():
            left[start:stop] = expected[start:stop]
        assert left == expected


TestStaged = pytest.mark.slow(Staged.TestCase)
TestStaged.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
