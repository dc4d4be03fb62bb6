"""Copies and moves lose nothing, whatever fails at whatever moment."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mountpoint import errors
from mountpoint.copy import objects as copies_module
from mountpoint.copy.objects import Copies
from mountpoint.s3.client import ALWAYS, Body, Condition, PutOptions, Stored
from mountpoint.upload.parts import Limits
from tests.soak import examples
from tests.unit.fake_client import SAFE_S, FakeClient, Fault, Request
from tests.unit.uploading import ABSENT, MIB, World, data_of

SOURCE, KEY = b"dir/source", b"dir/copy"


class CopyWorld(World):
    """Copies over a fake client; objects above 2 MiB are copied in parts of 1 MiB."""

    def __init__(self, client: FakeClient) -> None:
        super().__init__(client, limits=Limits(MIB, MIB))
        client.min_part_bytes = MIB
        client.max_copy_bytes = 2 * MIB

    def configure(self, **more: Any) -> None:
        super().configure(**more)
        self.copies = Copies(
            self.client, self.config, self.uploads, self.retry_policy, max_copy_bytes=2 * MIB
        )

    def kinds_and_keys(self) -> list[tuple[str, bytes]]:
        return [(request.kind, request.key) for request in self.client.requests]


@pytest.fixture
def world() -> Iterator[CopyWorld]:
    """Copies in a bucket without faults."""
    with FakeClient() as client:
        yield CopyWorld(client)


def put_with_properties(world: CopyWorld, data: bytes, **more: object) -> None:
    """Put the source, with all properties that an object can have."""
    options = PutOptions(
        content_type="text/x-test",
        metadata={"a": "b"},
        headers={"Cache-Control": "no-store"},
        **more,  # type: ignore[arg-type]
    )
    world.client.put_object(SOURCE, Body([data], len(data)), options).result(SAFE_S)
    world.client.requests.clear()


# --- copies ---


@pytest.mark.parametrize("size", [0, 1000, 2 * MIB, 2 * MIB + 1, 5 * MIB])
@pytest.mark.parametrize("condition", [ALWAYS, ABSENT])
def test_copies_of_all_sizes(world: CopyWorld, size: int, condition: Condition) -> None:
    """A copy has all bytes and all properties of its source."""
    put_with_properties(world, data_of(size), storage_class="STANDARD_IA")
    info = world.copies.copy(world.client.info(SOURCE), KEY, condition=condition)
    assert info == world.client.info(KEY)
    assert world.client.content(KEY) == world.client.content(SOURCE) == data_of(size)
    options = world.client.options(KEY)
    assert (options.content_type, options.metadata) == ("text/x-test", {"a": "b"})
    assert options.headers == {"Cache-Control": "no-store"}
    assert info.storage_class == "STANDARD_IA"
    assert ("copy_part", KEY) in world.kinds_and_keys() or size <= 2 * MIB
    world.check_over()


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_encryption_is_the_mounts(world: CopyWorld, size: int) -> None:
    """Copies are encrypted like uploads."""
    world.configure(sse="aws:kms", sse_kms_key_id="key")
    put_with_properties(world, data_of(size))
    world.copies.copy(world.client.info(SOURCE), KEY)
    options = world.client.options(KEY)
    assert (options.sse, options.sse_kms_key_id) == ("aws:kms", "key")


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("kind", ["head", "copy_object", "create_upload", "copy_part"])
def test_faults_are_tried_again(world: CopyWorld, kind: str, size: int) -> None:
    """Requests that may succeed later are repeated."""
    world.client.inject(kind, Fault(error=errors.ServerFault("a fault")))
    world.client.put(SOURCE, data_of(size))
    world.copies.copy(world.client.info(SOURCE), KEY, condition=ABSENT)
    assert world.client.content(KEY) == data_of(size)
    world.check_over()


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("condition", [ALWAYS, ABSENT])
@pytest.mark.parametrize("max_tries", [None, 1])
def test_a_lost_answer(
    world: CopyWorld, size: int, condition: Condition, max_tries: int | None
) -> None:
    """A copy whose answer was lost is found, with or without another try."""
    world.configure(max_tries=max_tries)
    world.client.put(SOURCE, data_of(size))
    kind = "copy_object" if size == 10 else "complete_upload"
    world.client.inject(kind, Fault(lost=True))
    info = world.copies.copy(world.client.info(SOURCE), KEY, condition=condition)
    assert info == world.client.info(KEY)
    assert world.client.content(KEY) == data_of(size)
    world.check_over()


@pytest.mark.parametrize("max_tries", [None, 1])
def test_somebody_elses_object_after_a_fault(world: CopyWorld, max_tries: int | None) -> None:
    """Another object at the target of a failed copy is not mistaken for the copy."""
    world.configure(max_tries=max_tries)
    world.client.put(SOURCE, b"source")

    def script(request: Request) -> Fault | None:
        if request.kind == "copy_object" and KEY not in list(world.client.keys()):
            world.client.put(KEY, b"others")
            return Fault(error=errors.ServerFault("a fault"))
        return None

    world.client.script = script
    with pytest.raises(errors.ServerFault if max_tries else errors.AlreadyExists):
        world.copies.copy(world.client.info(SOURCE), KEY, condition=ABSENT)
    assert world.client.content(KEY) == b"others"


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("look", [True, False])
def test_conditions(world: CopyWorld, size: int, look: bool) -> None:
    """An existing object is not overwritten, nor another version than the expected one."""
    world.client.put(SOURCE, data_of(size))
    there = world.client.put(KEY, b"there")
    info = world.client.info(SOURCE)
    with pytest.raises(errors.AlreadyExists):
        world.copies.copy(info, KEY, condition=ABSENT, look=look)
    stale = Condition(etag='"stale"')
    with pytest.raises(errors.PreconditionFailed):
        world.copies.copy(info, KEY, condition=stale, look=look)
    assert world.client.content(KEY) == b"there"
    with pytest.raises(errors.PreconditionFailed):
        world.copies.copy(info, b"nothing", condition=stale, look=look)
    world.copies.copy(info, KEY, condition=Condition(etag=there.etag), look=look)
    assert world.client.content(KEY) == data_of(size)
    world.check_over()


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("ignores", [True, False])
def test_stores_without_conditions(world: CopyWorld, size: int, ignores: bool) -> None:
    """If the store has no conditions, or ignores them, HEAD checks the target."""
    world.client.knows_conditions = ignores
    world.client.ignores_conditions = ignores
    world.client.put(SOURCE, data_of(size))
    world.client.put(b"there", b"there")
    info = world.client.info(SOURCE)
    with pytest.raises(errors.AlreadyExists):
        world.copies.copy(info, b"there", condition=ABSENT)
    for key in (KEY, b"second"):
        world.copies.copy(info, key, condition=ABSENT)
        assert world.client.content(key) == data_of(size)
    world.copies.move(info, b"third", condition=ABSENT)
    assert world.client.keys() == [KEY, b"second", b"there", b"third"]
    assert world.client.content(b"there") == b"there"


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("condition", [ALWAYS, ABSENT])
def test_another_version(world: CopyWorld, size: int, condition: Condition) -> None:
    """A source of another version is not copied."""
    info = world.client.put(SOURCE, data_of(size))
    world.client.put(SOURCE, data_of(size)[::-1])
    with pytest.raises(errors.PreconditionFailed) as caught:
        world.copies.copy(info, KEY, condition=condition)
    assert type(caught.value) is errors.PreconditionFailed
    world.client.delete(SOURCE)
    with pytest.raises(errors.NotFound):
        world.copies.copy(info, KEY, condition=condition)
    assert world.client.keys() == []


@pytest.mark.parametrize(("size", "warnings"), [(10, 0), (3 * MIB, 1)])
def test_tags_that_are_lost(
    world: CopyWorld, monkeypatch: pytest.MonkeyPatch, size: int, warnings: int
) -> None:
    """Copied parts have no tags: a warning says that a large object loses its tags."""
    world.client.put(SOURCE, data_of(size))
    head = world.client.head_with_checksums

    def tagged(key: bytes) -> Future[Stored]:
        future: Future[Stored] = Future()
        future.set_result(replace(head(key).result(SAFE_S), tags=2))
        return future

    monkeypatch.setattr(world.client, "head_with_checksums", tagged)
    with capture_logs() as lines:
        world.copies.copy(world.client.info(SOURCE), KEY)
    assert [line["log_level"] for line in lines].count("warning") == warnings


# --- moves ---


@pytest.mark.parametrize("size", [0, 10, 3 * MIB])
def test_order_of_a_move(world: CopyWorld, size: int) -> None:
    """The source is deleted last: after the copy, and after HEAD has shown the copy."""
    world.client.put(SOURCE, data_of(size))
    info = world.copies.move(world.client.info(SOURCE), KEY, condition=ABSENT)
    assert world.client.keys() == [KEY]
    assert world.client.content(KEY) == data_of(size)
    assert info == world.client.info(KEY)
    asked = world.kinds_and_keys()
    made = asked.index(("copy_object" if size <= 2 * MIB else "complete_upload", KEY))
    assert ("head", KEY) in asked[made:]
    assert asked[-1] == ("delete_object", SOURCE)
    assert sorted(asked[-3:-1]) == sorted([("head", SOURCE), ("head", KEY)])
    world.check_over()


def test_a_wrong_copy_keeps_the_source(world: CopyWorld) -> None:
    """If HEAD shows nothing, too few bytes, or another object, the source stays."""
    info = world.client.put(SOURCE, b"source")

    def then(change: Callable[[], object]) -> None:
        world.client.requests.clear()

        def script(request: Request) -> Fault | None:
            copied = any(each.kind == "copy_object" for each in world.client.requests)
            if (request.kind, request.key) == ("head", KEY) and copied:
                change()
            return None

        world.client.script = script

    for change, error in (
        (lambda: world.client.delete(KEY), errors.BadAnswer),
        (lambda: world.client.put(KEY, b"another"), errors.PreconditionFailed),
    ):
        then(change)
        with pytest.raises(error):
            world.copies.move(info, KEY)
        assert world.client.content(SOURCE) == b"source"


@pytest.mark.parametrize("moment", ["head", "delete_object"])
def test_a_source_that_changes_stays(world: CopyWorld, moment: str) -> None:
    """A version of the source that is written during the copy is not deleted; both stay."""
    info = world.client.put(SOURCE, b"source")

    def script(request: Request) -> Fault | None:
        if (request.kind, request.key) == (moment, SOURCE):
            world.client.put(SOURCE, b"changed")
        return None

    world.client.script = script
    with pytest.raises(errors.PreconditionFailed, match="both exist"):
        world.copies.move(info, KEY)
    assert world.client.content(SOURCE) == b"changed"
    assert world.client.content(KEY) == b"source"


def test_a_source_that_changes_stays_where_deletes_have_no_conditions(world: CopyWorld) -> None:
    """The HEAD before the delete shows it."""
    world.client.ignores_conditions = True
    info = world.client.put(SOURCE, b"source")

    def script(request: Request) -> Fault | None:
        if (request.kind, request.key) == ("head", SOURCE):
            world.client.put(SOURCE, b"changed")
        return None

    world.client.script = script
    with pytest.raises(errors.PreconditionFailed, match="both exist"):
        world.copies.move(info, KEY)
    assert world.client.content(SOURCE) == b"changed"


def test_a_source_that_cannot_be_deleted(world: CopyWorld) -> None:
    """The error says that both objects exist."""
    info = world.client.put(SOURCE, b"source")
    world.client.inject(
        "delete_object", Fault(error=errors.AccessDenied("no", code="AccessDenied"))
    )
    with pytest.raises(errors.AccessDenied, match="both exist") as caught:
        world.copies.move(info, KEY)
    assert caught.value.code == "AccessDenied"
    assert world.client.keys() == [KEY, SOURCE]


@pytest.mark.parametrize("moment", ["head", "delete_object"])
def test_a_source_that_is_gone(world: CopyWorld, moment: str) -> None:
    """If another client has deleted the source, the move succeeds."""
    info = world.client.put(SOURCE, b"source")

    def script(request: Request) -> Fault | None:
        if (request.kind, request.key) == (moment, SOURCE) and SOURCE in list(world.client.keys()):
            world.client.delete(SOURCE)
        return None

    world.client.script = script
    world.copies.move(info, KEY)
    assert world.client.keys() == [KEY]


@pytest.mark.parametrize("error", [errors.NotFound, errors.PreconditionFailed])
def test_a_lost_answer_of_the_delete(world: CopyWorld, error: type[errors.S3Error]) -> None:
    """A DELETE whose answer was lost is refused the second time, and counts as done."""
    info = world.client.put(SOURCE, b"source")
    world.client.inject("delete_object", Fault(lost=True), Fault(error=error("no such key")))
    world.copies.move(info, KEY)
    assert world.client.keys() == [KEY]


def test_to_where_it_is(world: CopyWorld) -> None:
    """An object moved to its own key is not deleted."""
    info = world.client.put(SOURCE, b"source")
    with pytest.raises(ValueError, match="its own name"):
        world.copies.move(info, SOURCE)
    assert world.client.requests == []


@given(
    st.integers(0, 12),
    st.sampled_from(["lost", "refused", "fault"]),
    st.sampled_from([10, 3 * MIB]),
    st.sampled_from([ALWAYS, ABSENT]),
)
@settings(max_examples=examples(40), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_failing_request(nth: int, what: str, size: int, condition: Condition) -> None:
    """If any one request is lost, refused or fails, one of the two keys has the bytes."""
    with FakeClient() as client:
        world = CopyWorld(client)
        info = client.put(SOURCE, data_of(size))
        seen = 0
        lock = threading.Lock()

        def script(request: Request) -> Fault | None:
            nonlocal seen
            with lock:
                seen += 1
                hit = seen == nth + 1
            if not hit:
                return None
            if what == "lost":
                return Fault(lost=True)
            error = errors.AccessDenied if what == "refused" else errors.ServerFault
            return Fault(error=error("no"))

        client.script = script
        try:
            world.copies.move(info, KEY, condition=condition)
        except errors.S3Error:
            assert what == "refused"
            assert client.content(SOURCE) == data_of(size)
        else:
            assert client.keys() == [KEY]
            assert client.content(KEY) == data_of(size)


# --- many ---


def fill(world: CopyWorld, count: int, prefix: bytes = b"old/") -> dict[bytes, bytes]:
    """Put objects below a prefix, with a marker; return them by their keys without the prefix."""
    world.client.put(prefix, b"")
    names = [b"%04d" % number for number in range(count)] + [b"sub/", b"sub/deep/file"]
    for name in names:
        world.client.put(prefix + name, b"data of " + name)
    return {b"": b"", **{name: b"data of " + name for name in names}}


def test_move_all(world: CopyWorld) -> None:
    """All keys below a prefix are moved, page by page, including the marker, and no others."""
    world.client.page_size = 7
    files = fill(world, 50)
    others = {b"old": b"1", b"older/x": b"2", b"ol": b"3"}
    for key, data in others.items():
        world.client.put(key, data)
    assert world.copies.move_all(b"old/", b"new/") == len(files)
    expected = others | {b"new/" + name: data for name, data in files.items()}
    assert world.client.contents() == expected


def test_move_nothing(world: CopyWorld) -> None:
    """A prefix without objects is moved immediately."""
    assert world.copies.move_all(b"old/", b"new/") == 0


@pytest.mark.parametrize("pair", [(b"a/", b"a/b/"), (b"a/b/", b"a/"), (b"a/", b"a/"), (b"", b"b/")])
def test_prefixes_within_each_other(world: CopyWorld, pair: tuple[bytes, bytes]) -> None:
    """A prefix is not moved into itself."""
    with pytest.raises(ValueError, match="into itself"):
        world.copies.move_all(*pair)
    assert world.client.requests == []


def test_nothing_is_overwritten(world: CopyWorld) -> None:
    """An existing key ends the move, and stays unchanged."""
    fill(world, 3)
    world.client.put(b"new/0001", b"there")
    with pytest.raises(errors.AlreadyExists, match=r"'old/0001' failed: .*already exists"):
        world.copies.move_all(b"old/", b"new/")
    assert world.client.content(b"new/0001") == b"there"
    assert world.client.content(b"old/0001") == b"data of 0001"


@pytest.mark.parametrize("copies", [True, False])
def test_markers(world: CopyWorld, copies: bool) -> None:
    """Markers move with their properties, onto others, and where the store cannot copy them."""

    def script(request: Request) -> Fault | None:
        if request.kind == "copy_object" and request.source.endswith(b"/") and not copies:
            return Fault(error=errors.NotFound("no such key"))
        return None

    world.client.script = script
    options = PutOptions(metadata={"mode": "16877"})
    for key in (b"old/", b"old/below/"):
        world.client.put_object(key, Body([], 0), options).result(SAFE_S)
    world.client.put(b"new/below/", b"")
    assert world.copies.move_all(b"old/", b"new/") == 2
    assert world.client.keys() == [b"new/", b"new/below/"]
    for key in (b"new/", b"new/below/"):
        assert world.client.options(key).metadata == {"mode": "16877"}


def test_a_marker_that_is_gone(world: CopyWorld) -> None:
    """A marker that is deleted after it was listed is not made again."""
    world.client.put(b"old/", b"")

    def script(request: Request) -> Fault | None:
        if request.kind == "copy_object":
            world.client._objects.pop(b"old/", None)
        return None

    world.client.script = script
    world.copies.move_all(b"old/", b"new/")
    assert world.client.keys() == []


def test_the_first_failure_ends_it(world: CopyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure no more moves start; each object is under one key, the failed one in two."""
    monkeypatch.setattr(copies_module, "MOVES", 1)
    files = fill(world, 100)

    def script(request: Request) -> Fault | None:
        if (request.kind, request.key) == ("delete_object", b"old/0010"):
            return Fault(error=errors.AccessDenied("may not delete"))
        return None

    world.client.script = script
    with pytest.raises(errors.AccessDenied) as caught:
        world.copies.move_all(b"old/", b"new/")
    keys = set(world.client.keys())
    moved = [name for name in files if b"old/" + name not in keys]
    for name, data in files.items():
        places = [key for key in (b"old/" + name, b"new/" + name) if key in keys]
        assert len(places) == (2 if name == b"0010" else 1)
        assert world.client.content(places[0]) == data
    assert len(moved) == 11  # the marker, and those before it
    assert f"{len(moved)} objects of 'old/' have been moved to 'new/'" in str(caught.value)
    assert "'old/0010' failed" in str(caught.value)
    assert "may not delete" in str(caught.value)


def test_a_listing_that_fails(world: CopyWorld) -> None:
    """The error says how many objects were moved before."""
    world.client.page_size = 5
    fill(world, 20)

    def script(request: Request) -> Fault | None:
        if request.kind == "list" and request.token is not None:
            return Fault(error=errors.AccessDenied("no"))
        return None

    world.client.script = script
    with pytest.raises(errors.AccessDenied, match=r"5 objects .* listing the others"):
        world.copies.move_all(b"old/", b"new/")


def test_objects_that_go_meanwhile(world: CopyWorld) -> None:
    """An object that is deleted after it was listed is skipped."""
    files = fill(world, 10)

    def script(request: Request) -> Fault | None:
        if request.kind == "copy_object" and request.source == b"old/0005":
            world.client._objects.pop(b"old/0005", None)
        return None

    world.client.script = script
    world.copies.move_all(b"old/", b"new/")
    assert len(world.client.keys()) == len(files) - 1


def test_the_end_of_the_mount(world: CopyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the mount no more moves start; those in progress finish."""
    monkeypatch.setattr(copies_module, "MOVES", 2)
    files = fill(world, 50)
    gate, copied = threading.Event(), threading.Event()

    def script(request: Request) -> Fault | None:
        if request.kind == "copy_object":
            copied.set()
            gate.wait(SAFE_S)
        return None

    world.client.script = script
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(world.copies.move_all, b"old/", b"new/")
        assert copied.wait(SAFE_S)
        world.stopping.set()
        gate.set()
        with pytest.raises(errors.Interrupted, match=r"objects of 'old/' have been moved"):
            future.result(SAFE_S)
    keys = world.client.keys()
    assert len(keys) == len(files)
    assert sum(key.startswith(b"new/") for key in keys) <= 4


def test_progress(world: CopyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log line shows the progress now and then."""
    monkeypatch.setattr(copies_module, "PROGRESS_S", 0.0)
    files = fill(world, 20)
    with capture_logs() as lines:
        world.copies.move_all(b"old/", b"new/")
    assert lines[-1] == {
        "event": "moving",
        "log_level": "info",
        "prefix": b"old/",
        "to": b"new/",
        "moved": len(files),
        "found": len(files),
    }


# --- stores that are not AWS's ---

LARGE = 6 * MIB
REFUSED_PART = errors.ChecksumsNotOffered("checksum missing", code="InvalidArgument", status=400)


def copied_in_parts(world: CopyWorld) -> Stored:
    """Copy a large source; return the stored object."""
    data = data_of(LARGE)
    put_with_properties(world, data)
    world.copies.copy(world.client.info(SOURCE), KEY)
    assert world.client.content(KEY) == data
    assert world.client.uploads == {}
    world.check_over()
    return world.client.head_with_checksums(KEY).result(SAFE_S)


@pytest.mark.parametrize("refuses", [True, False])
def test_parts_are_tried_once(world: CopyWorld, refuses: bool) -> None:
    """The trial of copied parts with checksums comes before the first copy, and only once."""
    world.client.be_unknown()
    world.configure()
    if refuses:
        world.client.refuses_copied_parts = REFUSED_PART
    with capture_logs() as lines:
        for begun in (2, 1):
            stored = copied_in_parts(world)
            assert ("crc32c" in stored.checksums) is not refuses
            assert world.client.count("create_upload") == begun
    assert len([line for line in lines if "cannot copy parts" in line["event"]]) == refuses


def test_parts_that_are_not_copied_at_all(world: CopyWorld) -> None:
    """If the trial fails, bytes are read and sent with checksums, and there is no second trial."""
    world.client.be_unknown()
    world.configure()
    refusal = errors.NotOffered("no", code="NotImplemented", status=501)
    world.client.script = lambda request: (
        Fault(error=refusal) if request.kind == "copy_part" else None
    )
    for begun in (2, 1):
        stored = copied_in_parts(world)
        assert "crc32c" in stored.checksums
        assert world.client.count("create_upload") == begun
        assert world.client.count("copy_part") == begun - 1


def test_parts_have_one_size_where_they_may_have_to(world: CopyWorld) -> None:
    """Copied parts but the last have one size, while the store may need that."""
    world.client.be_unknown()
    world.client.capabilities.equal_parts = None
    world.client.refuses_unequal_parts = True
    world.configure()
    world.client.requests.clear()
    data = data_of(LARGE + 1)
    put_with_properties(world, data)
    world.copies.copy(world.client.info(SOURCE), KEY)
    assert world.client.content(KEY) == data
    copied = [each.size_bytes for each in world.client.requests if each.kind == "copy_part"]
    assert copied[1:] == [5 * MIB, MIB + 1]  # after the trial
    assert world.client.count("get") == 0
    world.check_over()


def test_parts_are_not_tried_at_aws(world: CopyWorld) -> None:
    """At AWS there is no trial, only the real upload."""
    copied_in_parts(world)
    assert world.client.count("create_upload") == 1


@pytest.mark.parametrize("kind", ["create_upload", "copy_part", "abort_upload"])
def test_a_trial_that_fails(world: CopyWorld, kind: str) -> None:
    """A trial without a clear answer proves nothing, and does not fail the copy."""
    world.client.be_unknown()
    world.configure()
    world.client.inject(kind, Fault(error=errors.AccessDenied("no", status=403)))
    data = data_of(LARGE)
    put_with_properties(world, data)
    world.copies.copy(world.client.info(SOURCE), KEY)
    assert world.client.content(KEY) == data
    assert len(world.client.uploads) == (kind == "abort_upload")
