"""A staged file that several threads read, change, upload, move and remove, in many orders."""

import contextlib
import functools
from pathlib import Path

from mountpoint.errors import BadHandle, NotFound, OperationError, PreconditionFailed
from mountpoint.s3.client import ObjectInfo
from tests.unit.interleaving import Interleaving, explore
from tests.unit.staging_world import KEY, World

BASE, OTHER = b"0123456789", b"dir/other"


def test_reads_writes_uploads_and_names(tmp_path: Path) -> None:
    """The object is the file as it was at one moment, and the last upload has all that was written.

    Nothing stays on the disk, and no thread waits without need.
    """

    def run(it: Interleaving) -> None:
        world = World(tmp_path)
        bucket = world.bucket
        file = world.file(bucket.put(BASE))

        def slow() -> None:
            it.wait_until(lambda: True)

        bucket.on_fetch = bucket.on_fetched = bucket.on_send = slow

        def write(step: int) -> None:
            file.write(step, b"ab")  # both bytes, or none, are in any object and read

        def read(_: int) -> None:
            check(file.read(0, 100))

        def sync(_: int) -> None:
            file.sync()
            for data in bucket.objects.values():
                check(data)

        def move(_: int) -> None:
            def copy(base: ObjectInfo) -> ObjectInfo:
                bucket.objects[OTHER] = bucket.objects.pop(base.key)
                return bucket.info(OTHER)

            if file.key == KEY:
                file.move(OTHER, copy)

        def unlink(_: int) -> None:
            file.unlink(lambda: bucket.objects.clear())

        def check(data: bytes) -> None:
            assert len(data) == len(BASE)
            for place in (0, 4, 8):
                assert data[place : place + 2] in (BASE[place : place + 2], b"ab")

        actions = [write, write, read, read, sync, move, unlink]
        removes = it.random.random() < 0.3

        def work(plan: list[int], places: list[int]) -> None:
            for index, place in zip(plan, places, strict=True):
                with contextlib.suppress(NotFound, PreconditionFailed):  # fetches after `unlink`
                    actions[index](place)

        draw = it.random.choice
        plans = [[draw(range(6 + removes)) for _ in range(3)] for _ in range(3)]
        it.run(*(functools.partial(work, plan, [draw([0, 4, 8]) for _ in plan]) for plan in plans))
        assert it.waited_s == 0
        whole = None
        with contextlib.suppress(OperationError):
            whole = file.read(0, 100)
        file.sync()
        assert file.close()
        if not file.unlinked:
            assert list(bucket.objects.values()) == [whole]
            assert list(bucket.objects) == [file.key]
        assert world.names() == ["lock"]
        assert world.area.used_bytes == 0
        world.area.close()

    explore(run, 100)


def test_the_last_close_and_an_upload(tmp_path: Path) -> None:
    """A file is closed when it is in S3, and not before, whoever comes first."""

    def run(it: Interleaving) -> None:
        world = World(tmp_path)
        file = world.file(world.bucket.put(BASE))
        file.write(0, b"ab")
        closed: list[bool] = []

        def close() -> None:
            while not file.close():
                with contextlib.suppress(BadHandle):  # the other was faster
                    file.sync()
            closed.append(True)

        it.run(close, close)
        assert closed == [True, True]
        assert world.bucket.objects == {KEY: b"ab" + BASE[2:]}
        assert (world.area.used_bytes, it.waited_s) == (0, 0.0)
        world.area.close()

    explore(run, 100)
