"""The resolver's steps: each one answers only what the steps before it do not know."""

import pytest

from mountpoint.errors import NoSuchEntry
from mountpoint.fs.resolver import ABSENT_S
from tests.unit.mounted import Mounted, mounted


def requests(world: Mounted) -> list[str]:
    """Return the kinds of the requests since the last call."""
    kinds = [request.kind for request in world.client.requests]
    world.client.requests.clear()
    return kinds


def resolve(world: Mounted, name: bytes, *, attributes: bool = True) -> str:
    """Resolve a name in the root directory; return what it is."""
    root = world.fs._inodes.root
    try:
        entry, _ = world.fs._resolver.resolve(root, name, attributes=attributes)
    except NoSuchEntry:
        return "absent"
    return "directory" if entry.is_directory else "file"


def test_the_overlay_comes_first() -> None:
    """A directory that was created here hides the object of its name, and needs no request."""
    with mounted({b"a": b"1"}) as world:
        world.fs._local.add_directory(b"a/")
        assert resolve(world, b"a") == "directory"
        assert requests(world) == []


def test_the_cache_comes_before_s3() -> None:
    """A name is requested once within the ttl; an absent one only with a negative ttl."""
    with mounted({b"a": b"1", b"d/x": b""}, negative_ttl_s=1.0) as world:
        for name, kind in ((b"a", "file"), (b"d", "directory"), (b"b", "absent")):
            assert resolve(world, name) == kind
            assert requests(world) == ["list"]
            assert resolve(world, name) == kind
            assert requests(world) == []
        world.pass_s(1.0)
        assert resolve(world, b"b") == "absent"
        assert requests(world) == ["list"]
    with mounted() as world:
        assert [resolve(world, b"b") for _ in range(2)] == ["absent"] * 2
        assert requests(world) == ["list"] * 2


def test_names_that_s3_is_not_asked_for() -> None:
    """No key has a name that Linux does not allow, or more than 1024 bytes."""
    with mounted({b"a": b""}, prefix=b"d/" * 500) as world:
        for name in (b"..", b"", b"a/b", b"x" * 256, b"x" * 30):
            assert resolve(world, name) == "absent"
        assert requests(world) == []


def test_attributes_come_last() -> None:
    """Where attributes are kept, a lookup needs a HEAD, and deleting or renaming does not."""
    with mounted({b"a": b"1"}, attributes="keep") as world:
        assert resolve(world, b"a", attributes=False) == "file"
        assert requests(world) == ["list"]
        assert resolve(world, b"a") == "file"
        assert requests(world) == ["head"]
    with mounted({b"a": b"1"}) as world:
        assert resolve(world, b"a") == "file"
        assert requests(world) == ["list"]


def test_a_listed_file_that_is_gone() -> None:
    """HEAD finds that a listed file is gone: then it is looked up once more."""
    with mounted({b"a": b"1"}, attributes="keep") as world:
        world.names()
        world.client.delete(b"a")
        requests(world)
        assert resolve(world, b"a") == "absent"
        assert requests(world) == ["head", "list"]


@pytest.mark.parametrize(("passed_s", "sent"), [(0.0, []), (ABSENT_S, ["list"])])
def test_the_target_of_a_rename(passed_s: float, sent: list[str]) -> None:
    """A name that a recent lookup showed as absent needs no request."""
    with mounted({b"a": b"1"}) as world:
        root = world.fs._inodes.root
        target, check = world.fs._resolver.resolve_target(root, b"a")
        assert target is not None
        assert check
        assert resolve(world, b"b") == "absent"
        requests(world)
        world.pass_s(passed_s)
        assert world.fs._resolver.resolve_target(root, b"b") == (None, False)
        assert requests(world) == sent


def test_an_absent_name_is_forgotten_by_a_refresh() -> None:
    """After `refresh` a rename asks S3 for its target again."""
    with mounted() as world:
        assert resolve(world, b"b") == "absent"
        world.fs.refresh(b"")
        requests(world)
        assert world.fs._resolver.resolve_target(world.fs._inodes.root, b"b") == (None, False)
        assert requests(world) == ["list"]


def test_an_absent_name_is_remembered_while_others_change() -> None:
    """A change made here forgets its own name only."""
    with mounted({b"a": b"1"}, allow_delete=True) as world:
        root = world.fs._inodes.root
        assert resolve(world, b"b") == "absent"
        world.fs.unlink(root.number, b"a")
        requests(world)
        assert world.fs._resolver.resolve_target(root, b"b") == (None, False)
        assert requests(world) == []
