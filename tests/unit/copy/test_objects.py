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


class Place(World):
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
def place() -> Iterator[Place]:
    """Copies in a bucket without faults."""
    with FakeClient() as client:
        yield Place(client)


def described(place: Place, data: bytes, **more: object) -> None:
    """Put the source, with all properties that an object can have."""
    options = PutOptions(
        content_type="text/x-test",
        metadata={"a": "b"},
        headers={"Cache-Control": "no-store"},
        **more,  # type: ignore[arg-type]
    )
    place.client.put_object(SOURCE, Body([data], len(data)), options).result(SAFE_S)
    place.client.requests.clear()


# --- copies ---


@pytest.mark.parametrize("size", [0, 1000, 2 * MIB, 2 * MIB + 1, 5 * MIB])
@pytest.mark.parametrize("condition", [ALWAYS, ABSENT])
def test_copies_of_all_sizes(place: Place, size: int, condition: Condition) -> None:
    """A copy has all bytes and all properties of its source."""
    described(place, data_of(size), storage_class="STANDARD_IA")
    info = place.copies.copy(place.client.info(SOURCE), KEY, condition=condition)
    assert info == place.client.info(KEY)
    assert place.client.content(KEY) == place.client.content(SOURCE) == data_of(size)
    options = place.client.options(KEY)
    assert (options.content_type, options.metadata) == ("text/x-test", {"a": "b"})
    assert options.headers == {"Cache-Control": "no-store"}
    assert info.storage_class == "STANDARD_IA"
    assert ("copy_part", KEY) in place.kinds_and_keys() or size <= 2 * MIB
    place.check_over()


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_encryption_is_the_mounts(place: Place, size: int) -> None:
    """Copies are encrypted like uploads."""
    place.configure(sse="aws:kms", sse_kms_key_id="key")
    described(place, data_of(size))
    place.copies.copy(place.client.info(SOURCE), KEY)
    options = place.client.options(KEY)
    assert (options.sse, options.sse_kms_key_id) == ("aws:kms", "key")


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("kind", ["head", "copy_object", "create_upload", "copy_part"])
def test_faults_are_tried_again(place: Place, kind: str, size: int) -> None:
    """Requests that may succeed later are repeated."""
    place.client.inject(kind, Fault(error=errors.ServerFault("a fault")))
    place.client.put(SOURCE, data_of(size))
    place.copies.copy(place.client.info(SOURCE), KEY, condition=ABSENT)
    assert place.client.content(KEY) == data_of(size)
    place.check_over()


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("condition", [ALWAYS, ABSENT])
@pytest.mark.parametrize("max_tries", [None, 1])
def test_a_lost_answer(
    place: Place, size: int, condition: Condition, max_tries: int | None
) -> None:
    """A copy whose answer was lost is found, with or without another try."""
    place.configure(max_tries=max_tries)
    place.client.put(SOURCE, data_of(size))
    kind = "copy_object" if size == 10 else "complete_upload"
    place.client.inject(kind, Fault(lost=True))
    info = place.copies.copy(place.client.info(SOURCE), KEY, condition=condition)
    assert info == place.client.info(KEY)
    assert place.client.content(KEY) == data_of(size)
    place.check_over()


@pytest.mark.parametrize("max_tries", [None, 1])
def test_somebody_elses_object_after_a_fault(place: Place, max_tries: int | None) -> None:
    """Another object at the target of a failed copy is not mistaken for the copy."""
    place.configure(max_tries=max_tries)
    place.client.put(SOURCE, b"source")

    def script(request: Request) -> Fault | None:
        if request.kind == "copy_object" and KEY not in list(place.client.keys()):
            place.client.put(KEY, b"others")
            return Fault(error=errors.ServerFault("a fault"))
        return None

    place.client.script = script
    with pytest.raises(errors.ServerFault if max_tries else errors.AlreadyExists):
        place.copies.copy(place.client.info(SOURCE), KEY, condition=ABSENT)
    assert place.client.content(KEY) == b"others"


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("look", [True, False])
def test_conditions(place: Place, size: int, look: bool) -> None:
    """An existing object is not overwritten, nor another version than the expected one."""
    place.client.put(SOURCE, data_of(size))
    there = place.client.put(KEY, b"there")
    info = place.client.info(SOURCE)
    with pytest.raises(errors.AlreadyExists):
        place.copies.copy(info, KEY, condition=ABSENT, look=look)
    stale = Condition(etag='"stale"')
    with pytest.raises(errors.PreconditionFailed):
        place.copies.copy(info, KEY, condition=stale, look=look)
    assert place.client.content(KEY) == b"there"
    with pytest.raises(errors.PreconditionFailed):
        place.copies.copy(info, b"nothing", condition=stale, look=look)
    place.copies.copy(info, KEY, condition=Condition(etag=there.etag), look=look)
    assert place.client.content(KEY) == data_of(size)
    place.check_over()


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("ignores", [True, False])
def test_stores_without_conditions(place: Place, size: int, ignores: bool) -> None:
    """If the store has no conditions, or ignores them, HEAD checks the target."""
    place.client.knows_conditions = ignores
    place.client.ignores_conditions = ignores
    place.client.put(SOURCE, data_of(size))
    place.client.put(b"there", b"there")
    info = place.client.info(SOURCE)
    with pytest.raises(errors.AlreadyExists):
        place.copies.copy(info, b"there", condition=ABSENT)
    for key in (KEY, b"second"):
        place.copies.copy(info, key, condition=ABSENT)
        assert place.client.content(key) == data_of(size)
    place.copies.move(info, b"third", condition=ABSENT)
    assert place.client.keys() == [KEY, b"second", b"there", b"third"]
    assert place.client.content(b"there") == b"there"


@pytest.mark.parametrize("size", [10, 3 * MIB])
@pytest.mark.parametrize("condition", [ALWAYS, ABSENT])
def test_another_version(place: Place, size: int, condition: Condition) -> None:
    """A source of another version is not copied."""
    info = place.client.put(SOURCE, data_of(size))
    place.client.put(SOURCE, data_of(size)[::-1])
    with pytest.raises(errors.PreconditionFailed) as caught:
        place.copies.copy(info, KEY, condition=condition)
    assert type(caught.value) is errors.PreconditionFailed
    place.client.delete(SOURCE)
    with pytest.raises(errors.NotFound):
        place.copies.copy(info, KEY, condition=condition)
    assert place.client.keys() == []


@pytest.mark.parametrize(("size", "warnings"), [(10, 0), (3 * MIB, 1)])
def test_tags_that_are_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch, size: int, warnings: int
) -> None:
    """Copied parts have no tags: a warning says that a large object loses its tags."""
    place.client.put(SOURCE, data_of(size))
    head = place.client.head_with_checksums

    def tagged(key: bytes) -> Future[Stored]:
        future: Future[Stored] = Future()
        future.set_result(replace(head(key).result(SAFE_S), tags=2))
        return future

    monkeypatch.setattr(place.client, "head_with_checksums", tagged)
    with capture_logs() as lines:
        place.copies.copy(place.client.info(SOURCE), KEY)
    assert [line["log_level"] for line in lines].count("warning") == warnings


# --- moves ---


@pytest.mark.parametrize("size", [0, 10, 3 * MIB])
def test_order_of_a_move(place: Place, size: int) -> None:
    """The source is deleted last: after the copy, and after HEAD has shown the copy."""
    place.client.put(SOURCE, data_of(size))
    info = place.copies.move(place.client.info(SOURCE), KEY, condition=ABSENT)
    assert place.client.keys() == [KEY]
    assert place.client.content(KEY) == data_of(size)
    assert info == place.client.info(KEY)
    asked = place.kinds_and_keys()
    made = asked.index(("copy_object" if size <= 2 * MIB else "complete_upload", KEY))
    assert ("head", KEY) in asked[made:]
    assert asked[-1] == ("delete_object", SOURCE)
    assert sorted(asked[-3:-1]) == sorted([("head", SOURCE), ("head", KEY)])
    place.check_over()


def test_a_wrong_copy_keeps_the_source(place: Place) -> None:
    """If HEAD shows nothing, too few bytes, or another object, the source stays."""
    info = place.client.put(SOURCE, b"source")

    def then(change: Callable[[], object]) -> None:
        place.client.requests.clear()

        def script(request: Request) -> Fault | None:
            copied = any(each.kind == "copy_object" for each in place.client.requests)
            if (request.kind, request.key) == ("head", KEY) and copied:
                change()
            return None

        place.client.script = script

    for change, error in (
        (lambda: place.client.delete(KEY), errors.BadAnswer),
        (lambda: place.client.put(KEY, b"another"), errors.PreconditionFailed),
    ):
        then(change)
        with pytest.raises(error):
            place.copies.move(info, KEY)
        assert place.client.content(SOURCE) == b"source"


@pytest.mark.parametrize("moment", ["head", "delete_object"])
def test_a_source_that_changes_stays(place: Place, moment: str) -> None:
    """A version of the source that is written during the copy is not deleted; both stay."""
    info = place.client.put(SOURCE, b"source")

    def script(request: Request) -> Fault | None:
        if (request.kind, request.key) == (moment, SOURCE):
            place.client.put(SOURCE, b"changed")
        return None

    place.client.script = script
    with pytest.raises(errors.PreconditionFailed, match="both exist"):
        place.copies.move(info, KEY)
    assert place.client.content(SOURCE) == b"changed"
    assert place.client.content(KEY) == b"source"


def test_a_source_that_changes_stays_where_deletes_have_no_conditions(place: Place) -> None:
    """The HEAD before the delete shows it."""
    place.client.ignores_conditions = True
    info = place.client.put(SOURCE, b"source")

    def script(request: Request) -> Fault | None:
        if (request.kind, request.key) == ("head", SOURCE):
            place.client.put(SOURCE, b"changed")
        return None

    place.client.script = script
    with pytest.raises(errors.PreconditionFailed, match="both exist"):
        place.copies.move(info, KEY)
    assert place.client.content(SOURCE) == b"changed"


def test_a_source_that_cannot_be_deleted(place: Place) -> None:
    """The error says that both objects exist."""
    info = place.client.put(SOURCE, b"source")
    place.client.inject(
        "delete_object", Fault(error=errors.AccessDenied("no", code="AccessDenied"))
    )
    with pytest.raises(errors.AccessDenied, match="both exist") as caught:
        place.copies.move(info, KEY)
    assert caught.value.code == "AccessDenied"
    assert place.client.keys() == [KEY, SOURCE]


@pytest.mark.parametrize("moment", ["head", "delete_object"])
def test_a_source_that_is_gone(place: Place, moment: str) -> None:
    """If another client has deleted the source, the move succeeds."""
    info = place.client.put(SOURCE, b"source")

    def script(request: Request) -> Fault | None:
        if (request.kind, request.key) == (moment, SOURCE) and SOURCE in list(place.client.keys()):
            place.client.delete(SOURCE)
        return None

    place.client.script = script
    place.copies.move(info, KEY)
    assert place.client.keys() == [KEY]


@pytest.mark.parametrize("error", [errors.NotFound, errors.PreconditionFailed])
def test_a_lost_answer_of_the_delete(place: Place, error: type[errors.S3Error]) -> None:
    """A DELETE whose answer was lost is refused the second time, and counts as done."""
    info = place.client.put(SOURCE, b"source")
    place.client.inject("delete_object", Fault(lost=True), Fault(error=error("no such key")))
    place.copies.move(info, KEY)
    assert place.client.keys() == [KEY]


def test_to_where_it_is(place: Place) -> None:
    """An object moved to its own key is not deleted."""
    info = place.client.put(SOURCE, b"source")
    with pytest.raises(ValueError, match="its own name"):
        place.copies.move(info, SOURCE)
    assert place.client.requests == []


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
        place = Place(client)
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
            place.copies.move(info, KEY, condition=condition)
        except errors.S3Error:
            assert what == "refused"
            assert client.content(SOURCE) == data_of(size)
        else:
            assert client.keys() == [KEY]
            assert client.content(KEY) == data_of(size)


# --- many ---


def fill(place: Place, count: int, prefix: bytes = b"old/") -> dict[bytes, bytes]:
    """Put objects below a prefix, with a marker; return them by their keys without the prefix."""
    place.client.put(prefix, b"")
    names = [b"%04d" % number for number in range(count)] + [b"sub/", b"sub/deep/file"]
    for name in names:
        place.client.put(prefix + name, b"data of " + name)
    return {b"": b"", **{name: b"data of " + name for name in names}}


def test_move_all(place: Place) -> None:
    """All keys below a prefix are moved, page by page, including the marker, and no others."""
    place.client.page_size = 7
    files = fill(place, 50)
    others = {b"old": b"1", b"older/x": b"2", b"ol": b"3"}
    for key, data in others.items():
        place.client.put(key, data)
    assert place.copies.move_all(b"old/", b"new/") == len(files)
    expected = others | {b"new/" + name: data for name, data in files.items()}
    assert place.client.contents() == expected


def test_move_nothing(place: Place) -> None:
    """A prefix without objects is moved immediately."""
    assert place.copies.move_all(b"old/", b"new/") == 0


@pytest.mark.parametrize("pair", [(b"a/", b"a/b/"), (b"a/b/", b"a/"), (b"a/", b"a/"), (b"", b"b/")])
def test_prefixes_within_each_other(place: Place, pair: tuple[bytes, bytes]) -> None:
    """A prefix is not moved into itself."""
    with pytest.raises(ValueError, match="into itself"):
        place.copies.move_all(*pair)
    assert place.client.requests == []


def test_nothing_is_overwritten(place: Place) -> None:
    """An existing key ends the move, and stays unchanged."""
    fill(place, 3)
    place.client.put(b"new/0001", b"there")
    with pytest.raises(errors.AlreadyExists, match=r"'old/0001' failed: .*already exists"):
        place.copies.move_all(b"old/", b"new/")
    assert place.client.content(b"new/0001") == b"there"
    assert place.client.content(b"old/0001") == b"data of 0001"


def test_the_first_failure_ends_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure no more moves start; each object is in one place, the failed one in two."""
    monkeypatch.setattr(copies_module, "MOVES", 1)
    files = fill(place, 100)

    def script(request: Request) -> Fault | None:
        if (request.kind, request.key) == ("delete_object", b"old/0010"):
            return Fault(error=errors.AccessDenied("may not delete"))
        return None

    place.client.script = script
    with pytest.raises(errors.AccessDenied) as caught:
        place.copies.move_all(b"old/", b"new/")
    keys = set(place.client.keys())
    moved = [name for name in files if b"old/" + name not in keys]
    for name, data in files.items():
        places = [key for key in (b"old/" + name, b"new/" + name) if key in keys]
        assert len(places) == (2 if name == b"0010" else 1)
        assert place.client.content(places[0]) == data
    assert len(moved) == 11  # the marker, and those before it
    assert f"{len(moved)} objects of 'old/' have been moved to 'new/'" in str(caught.value)
    assert "'old/0010' failed" in str(caught.value)
    assert "may not delete" in str(caught.value)


def test_a_listing_that_fails(place: Place) -> None:
    """The error says how many objects were moved before."""
    place.client.page_size = 5
    fill(place, 20)

    def script(request: Request) -> Fault | None:
        if request.kind == "list" and request.token is not None:
            return Fault(error=errors.AccessDenied("no"))
        return None

    place.client.script = script
    with pytest.raises(errors.AccessDenied, match=r"5 objects .* listing the others"):
        place.copies.move_all(b"old/", b"new/")


def test_objects_that_go_meanwhile(place: Place) -> None:
    """An object that is deleted after it was listed is skipped."""
    files = fill(place, 10)

    def script(request: Request) -> Fault | None:
        if request.kind == "copy_object" and request.source == b"old/0005":
            place.client._objects.pop(b"old/0005", None)
        return None

    place.client.script = script
    place.copies.move_all(b"old/", b"new/")
    assert len(place.client.keys()) == len(files) - 1


def test_the_end_of_the_mount(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the mount no more moves start; those in progress finish."""
    monkeypatch.setattr(copies_module, "MOVES", 2)
    files = fill(place, 50)
    gate, copied = threading.Event(), threading.Event()

    def script(request: Request) -> Fault | None:
        if request.kind == "copy_object":
            copied.set()
            gate.wait(SAFE_S)
        return None

    place.client.script = script
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(place.copies.move_all, b"old/", b"new/")
        assert copied.wait(SAFE_S)
        place.stopping.set()
        gate.set()
        with pytest.raises(errors.Interrupted, match=r"objects of 'old/' have been moved"):
            future.result(SAFE_S)
    keys = place.client.keys()
    assert len(keys) == len(files)
    assert sum(key.startswith(b"new/") for key in keys) <= 4


def test_progress(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log line shows the progress now and then."""
    monkeypatch.setattr(copies_module, "PROGRESS_S", 0.0)
    files = fill(place, 20)
    with capture_logs() as lines:
        place.copies.move_all(b"old/", b"new/")
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


def copied_in_parts(place: Place) -> Stored:
    """Copy a large source; return the stored object."""
    data = data_of(LARGE)
    described(place, data)
    place.copies.copy(place.client.info(SOURCE), KEY)
    assert place.client.content(KEY) == data
    assert place.client.uploads == {}
    place.check_over()
    return place.client.head_with_checksums(KEY).result(SAFE_S)


@pytest.mark.parametrize("refuses", [True, False])
def test_parts_are_tried_once(place: Place, refuses: bool) -> None:
    """The trial of copied parts with checksums comes before the first copy, and only once."""
    place.client.be_unknown()
    place.configure()
    if refuses:
        place.client.refuses_copied_parts = REFUSED_PART
    with capture_logs() as lines:
        for begun in (2, 1):
            stored = copied_in_parts(place)
            assert ("crc32c" in stored.checksums) is not refuses
            assert place.client.count("create_upload") == begun
    assert len([line for line in lines if "cannot copy parts" in line["event"]]) == refuses


def test_parts_that_are_not_copied_at_all(place: Place) -> None:
    """If the trial fails, bytes are read and sent with checksums, and there is no second trial."""
    place.client.be_unknown()
    place.configure()
    refusal = errors.NotOffered("no", code="NotImplemented", status=501)
    place.client.script = lambda request: (
        Fault(error=refusal) if request.kind == "copy_part" else None
    )
    for begun in (2, 1):
        stored = copied_in_parts(place)
        assert "crc32c" in stored.checksums
        assert place.client.count("create_upload") == begun
        assert place.client.count("copy_part") == begun - 1


def test_parts_have_one_size_where_they_may_have_to(place: Place) -> None:
    """Copied parts but the last have one size, while the store may need that."""
    place.client.be_unknown()
    place.client.capabilities.equal_parts = None
    place.client.refuses_unequal_parts = True
    place.configure()
    place.client.requests.clear()
    data = data_of(LARGE + 1)
    described(place, data)
    place.copies.copy(place.client.info(SOURCE), KEY)
    assert place.client.content(KEY) == data
    copied = [each.size_bytes for each in place.client.requests if each.kind == "copy_part"]
    assert copied[1:] == [5 * MIB, MIB + 1]  # after the trial
    assert place.client.count("get") == 0
    place.check_over()


def test_parts_are_not_tried_at_aws(place: Place) -> None:
    """At AWS there is no trial, only the real upload."""
    copied_in_parts(place)
    assert place.client.count("create_upload") == 1


@pytest.mark.parametrize("kind", ["create_upload", "copy_part", "abort_upload"])
def test_a_trial_that_fails(place: Place, kind: str) -> None:
    """A trial without a clear answer proves nothing, and does not fail the copy."""
    place.client.be_unknown()
    place.configure()
    place.client.inject(kind, Fault(error=errors.AccessDenied("no", status=403)))
    data = data_of(LARGE)
    described(place, data)
    place.copies.copy(place.client.info(SOURCE), KEY)
    assert place.client.content(KEY) == data
    assert len(place.client.uploads) == (kind == "abort_upload")
