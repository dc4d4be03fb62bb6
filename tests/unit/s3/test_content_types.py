"""Content types follow the final name of an object, unless another type was chosen."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mountpoint.config import WriteConfig
from mountpoint.fs.inodes import ROOT
from mountpoint.s3.client import Body, PutOptions
from mountpoint.s3.content_types import after_rename, by_name
from mountpoint.staging.area import StagingArea
from tests.unit.mounted import Mounted, mounted

INFER = WriteConfig(content_types=True)
BINARY = "binary/octet-stream"


@pytest.mark.parametrize(
    ("key", "expected"),
    [(b"d/a.png", "image/png"), (b"a.HTML", "text/html"), (b"a", None), (b"a.png/", None)],
)
def test_by_name(key: bytes, expected: str | None) -> None:
    """The extension decides; a directory's name has no type."""
    assert by_name(key) == expected


@pytest.mark.parametrize(
    ("before", "old", "new", "expected"),
    [
        (None, b"a.tmp", b"a.png", "image/png"),
        (BINARY, b".page.x7", b"page.html", "text/html"),
        ("application/octet-stream", b"a", b"a.css", "text/css"),
        ("image/png", b"a.png", b"a.html", "text/html"),
        ("image/png", b"a.png", b"a", BINARY),
        ("image/png", b"a.png", b"b.png", "image/png"),
        ("text/x-mine", b"a.tmp", b"a.png", "text/x-mine"),
        (BINARY, b"a", b"b", BINARY),
        (None, b"a", b"b", None),
    ],
)
def test_after_rename(before: str | None, old: bytes, new: bytes, expected: str | None) -> None:
    """A type from a name, or a default, follows the name; a chosen one stays."""
    assert after_rename(before, old, new) == expected


def content_type(world: Mounted, key: bytes) -> str | None:
    """Return the content type of an object."""
    return world.client.options(key).content_type


def put(world: Mounted, key: bytes, options: PutOptions) -> None:
    """Put an object without the mount."""
    world.client.put_object(key, Body([b"1"], 1, None), options).result()


@pytest.mark.parametrize(
    ("before", "expected"), [(None, "text/css"), (BINARY, "text/css"), ("text/x-mine",) * 2]
)
def test_an_object_that_is_renamed(before: str | None, expected: str) -> None:
    """The copy has the type of its new name, and all other properties."""
    with mounted(write=INFER, allow_rename=True) as world:
        options = PutOptions(
            content_type=before,
            storage_class="STANDARD_IA",
            metadata={"mine": "1"},
            headers={"Cache-Control": "no-cache"},
        )
        put(world, b"a.tmp", options)
        world.look(b"a.tmp")
        world.fs.rename(ROOT, b"a.tmp", ROOT, b"a.css")
        found = world.client.options(b"a.css")
        assert found.content_type == expected
        assert found.metadata == options.metadata
        assert found.headers == options.headers
        assert found.storage_class == options.storage_class


def test_without_the_option() -> None:
    """Without the option a renamed object keeps its type, without additional requests."""
    with mounted(allow_rename=True) as world:
        put(world, b"a.tmp", PutOptions(content_type=BINARY))
        world.look(b"a.tmp")
        world.fs.rename(ROOT, b"a.tmp", ROOT, b"a.css")
        assert content_type(world, b"a.css") == BINARY


@pytest.mark.parametrize("size", [1, 9 << 20], ids=["one request", "parts"])
def test_a_file_that_is_renamed_while_it_is_written(size: int) -> None:
    """Whether or not S3 knows the upload already."""
    with mounted(write=INFER, allow_rename=True) as world:
        handle = world.create(b"a.tmp")
        for offset in range(0, size, 1 << 20):
            world.fs.write(handle, offset, bytes(min(1 << 20, size - offset)))
        world.fs.rename(ROOT, b"a.tmp", ROOT, b"a.css")
        world.close(handle)
        assert world.client.keys() == [b"a.css"]
        assert content_type(world, b"a.css") == "text/css"


def create(world: Mounted) -> None:
    world.write_file(b"a.css", b"1")


def rename(world: Mounted) -> None:
    world.write_file(b"a.tmp", b"1")
    world.fs.rename(ROOT, b"a.tmp", ROOT, b"a.css")


def rename_open(world: Mounted) -> None:
    handle = world.create(b"a.tmp")
    world.fs.write(handle, 0, b"1")
    world.fs.rename(ROOT, b"a.tmp", ROOT, b"a.css")
    world.close(handle)


def replace(world: Mounted) -> None:
    put(world, b"a.css", PutOptions(content_type="text/x-mine"))
    world.close(world.fs.open(world.look(b"a.css").inode, os.O_WRONLY | os.O_TRUNC))


@pytest.mark.parametrize("change", [create, rename, rename_open, replace])
def test_staged_files(tmp_path: Path, change: Callable[[Mounted], None]) -> None:
    """A staged file has the type of the name under which it is uploaded."""
    area = StagingArea(str(tmp_path), "bucket", 64 << 20)
    options = {"allow_rename": True, "allow_overwrite": True}
    with mounted(write=INFER, staging=area, **options) as world:
        change(world)
        assert content_type(world, b"a.css") == "text/css"
