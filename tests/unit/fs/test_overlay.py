"""Names that exist in this mount only: files that are being written, and directories."""

from types import SimpleNamespace
from typing import Any

import pytest

from mountpoint.fs.overlay import OverlayNames

ROOT = b"prefix/"


@pytest.fixture
def names() -> OverlayNames:
    """The names of a mount below a prefix."""
    return OverlayNames(ROOT)


def writer(number: int, directory: bytes, name: bytes) -> Any:
    """Return the writer of a file with this name."""
    inode = SimpleNamespace(number=number, directory=directory, name=name, info=f"info {number}")
    return SimpleNamespace(inode=inode)


def shown(names: OverlayNames, directory: bytes) -> list[bytes]:
    """Return the names in a directory."""
    return [entry.name for entry in names.entries(directory)]


def test_one_writer_has_a_name(names: OverlayNames) -> None:
    """A second file of the same name is refused, until the first is removed."""
    first, second = writer(1, ROOT, b"f"), writer(2, ROOT, b"f")
    assert names.add_file(first)
    assert not names.add_file(second)
    assert names.file(ROOT, b"f") == first
    assert names.remove_file(first)
    assert not names.remove_file(first)
    assert names.add_file(second)
    assert names.writers() == [second]


def test_an_unlinked_file_has_a_writer_without_a_name(names: OverlayNames) -> None:
    """Its handles go on, and its name is free."""
    file = writer(1, ROOT, b"f")
    names.add_file(file)
    names.remove_name(file)
    assert names.file(ROOT, b"f") is None
    assert names.is_empty(ROOT)
    assert names.writer(file.inode) == file
    assert names.remove_file(file)
    assert names.writers() == []


def test_a_renamed_file_replaces_another(names: OverlayNames) -> None:
    """It is found under its new name only, also in another directory."""
    file, other = writer(1, ROOT, b"f"), writer(2, b"prefix/d/", b"g")
    names.add_file(file)
    names.add_file(other)

    def move() -> None:
        file.inode.directory, file.inode.name = b"prefix/d/", b"g"

    names.rename_file(file, move)
    assert names.file(b"prefix/d/", b"g") is file
    assert names.file(ROOT, b"f") is None
    assert [each.name for each in names.entries(ROOT)] == [b"d"]


def test_a_directory_brings_those_above_it(names: OverlayNames) -> None:
    """All directories up to the root exist, and the root itself is no entry."""
    names.add_directory(b"prefix/a/b/c/")
    assert names.is_directory(b"prefix/a/")
    assert names.is_directory(b"prefix/a/b/c/")
    assert not names.is_directory(ROOT)
    assert shown(names, ROOT) == [b"a"]
    names.remove_directory(b"prefix/a/b/")
    assert not names.is_directory(b"prefix/a/b/c/")
    assert names.is_directory(b"prefix/a/")
    assert names.is_empty(b"prefix/a/")


def test_a_moved_directory_takes_all_below(names: OverlayNames) -> None:
    """Directories and files below it have their new place, and its neighbours stay."""
    file, neighbour = writer(1, b"prefix/a/b/", b"f"), writer(2, b"prefix/a-/", b"g")
    names.add_directory(b"prefix/a/b/")
    names.add_file(file)
    names.add_file(neighbour)
    names.move_directory(b"prefix/a/", b"prefix/new/")
    assert names.file(b"prefix/new/b/", b"f") is file
    assert names.is_directory(b"prefix/new/b/")
    assert not names.is_directory(b"prefix/a/")
    assert names.is_empty(b"prefix/a/")
    assert names.file(b"prefix/a-/", b"g") is neighbour


def test_entries_are_sorted_and_unique(names: OverlayNames) -> None:
    """A directory hides a file of its name; entries of files have their description."""
    names.add_file(writer(1, ROOT, b"z"))
    names.add_file(writer(2, ROOT, b"b"))
    names.add_file(writer(3, ROOT, b"a"))
    names.add_directory(b"prefix/b/")
    found = names.entries(ROOT)
    assert [(each.name, each.info) for each in found] == [
        (b"a", "info 3"),
        (b"b", None),
        (b"z", "info 1"),
    ]
