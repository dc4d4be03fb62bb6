"""Uploads to stores that require all parts except the last to have one size."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mountpoint import errors
from mountpoint.s3.client import Condition
from mountpoint.upload import multipart, parts
from mountpoint.upload.parts import Limits, are_equal
from tests.soak import examples
from tests.unit.fake_client import FakeClient, Fault
from tests.unit.upload.test_upload_copy import put, random_bytes
from tests.unit.uploading import KEY, MIB, PART, World, data_of

ANY = Condition()


@pytest.fixture
def world() -> Iterator[World]:
    """A store that may require such parts; it is not known yet."""
    with FakeClient() as client:
        client.min_part_bytes = PART
        client.refuses_unequal_parts = True
        yield known_to_want(World(client), None)


def known_to_want(world: World, equal: bool | None) -> World:
    """Set whether the store's requirement is known."""
    world.client.be_unknown()
    world.client.capabilities.equal_parts = equal
    world.configure()
    return world


def test_appending(world: World) -> None:
    """As many whole parts as possible are copied; the rest is read and sent with the new bytes."""
    info, data = put(world, 3 * PART + 5)
    upload = world.uploads.upload(KEY, condition=ANY, known_bytes=info.size_bytes)
    upload.copy(info, 0, info.size_bytes)
    world.write(upload, b"appended")
    upload.finish()
    assert world.client.content(KEY) == data + b"appended"
    assert world.kinds().count("copy_part") == 3
    assert [each.size_bytes for each in world.client.requests if each.kind == "upload_part"] == [13]
    assert world.client.count("complete_upload") == 1
    world.check_over()


def test_a_whole_object_is_copied_in_large_parts(world: World) -> None:
    """Without new bytes nothing is read, not even the end."""
    world.limits = Limits(PART, 2 * PART)
    world.configure()
    info, data = put(world, 4 * PART + 5)
    upload = world.uploads.upload(KEY, condition=ANY, known_bytes=info.size_bytes, only_copied=True)
    upload.copy(info, 0, info.size_bytes, last=True)
    upload.finish()
    assert world.client.content(KEY) == data
    copied = [each.size_bytes for each in world.client.requests if each.kind == "copy_part"]
    assert copied == [2 * PART, 2 * PART, 5]
    assert not {"get", "upload_part"} & set(world.kinds())
    world.check_over()


@pytest.mark.slow
@given(st.data())
@settings(max_examples=examples(20), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sequence_is_the_concatenation(draws: st.DataObject) -> None:
    """Writes and copies in any order give equal parts and the right bytes."""
    least = MIB
    part = draws.draw(st.sampled_from([least, least + 300_000, 2 * least]), "part")
    with FakeClient() as client:
        client.min_part_bytes = least
        client.refuses_unequal_parts = True
        client.be_unknown()
        client.capabilities.equal_parts = draws.draw(st.sampled_from([True, None]), "known")
        world = World(client, 8 * MIB, Limits(least, 3 * least))
        world.configure(part_bytes=part)
        small = client.put(b"small", random_bytes(200_000, 1))
        large = client.put(b"large", random_bytes(9 * MIB, 2))
        upload = world.uploads.upload(KEY, condition=ANY, known_bytes=0)
        expected = b""
        steps = draws.draw(st.integers(1, 6), "steps")
        for step in range(steps):
            if draws.draw(st.booleans(), "copies"):
                source = draws.draw(st.sampled_from([small, large]))
                bounds = st.integers(0, source.size_bytes)
                start, stop = sorted([draws.draw(bounds), draws.draw(bounds)])
                upload.copy(source, start, stop, last=step == steps - 1)
                expected += client.content(source.key)[start:stop]
            else:
                size = draws.draw(st.sampled_from([1, 1000, least - 1, least, 2_500_000]))
                data = random_bytes(size, len(expected))
                world.write(upload, data)
                expected += data
        upload.finish()
        assert client.content(KEY) == expected
        world.check_over()


@pytest.mark.slow
def test_a_growing_file_is_refused_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first growing file fails, and the log says what to do; later ones succeed."""
    monkeypatch.setattr(parts, "GROWTH", 2)
    data = data_of(8 * PART)
    with capture_logs() as lines:
        upload = world.upload()
        world.write(upload, data)
        with pytest.raises(errors.S3Error, match="same length") as caught:
            upload.finish()
        assert "write the file again" in caught.value.hint
        assert "--write-part-size" in caught.value.hint
        upload.abort()
        for _ in range(2):
            upload = world.upload(ANY)
            world.write(upload, data)
            upload.finish()
            assert world.client.content(KEY) == data
    assert world.client.count("complete_upload") == 3
    assert len([line for line in lines if "parts of one size" in line["event"]]) == 1
    world.check_over()


def test_files_known_to_be_large_are_never_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its parts have the size of the last one from the start."""
    monkeypatch.setattr(parts, "GROWTH", 2)
    data = data_of(8 * PART)
    upload = world.uploads.upload(KEY, condition=ANY, known_bytes=len(data))
    world.write(upload, data)
    upload.finish()
    sizes = [each.size_bytes for each in world.client.requests if each.kind == "upload_part"]
    assert sizes == [4 * PART, 4 * PART]
    world.check_over()


def test_parts_never_grow_if_the_store_wants_equal_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 parts are the limit, and the error names the option."""
    monkeypatch.setattr(parts, "GROWTH", 2)
    monkeypatch.setattr(multipart, "MAX_PARTS", 6)
    known_to_want(world, True)
    upload = world.upload()
    world.write(upload, data_of(6 * PART))
    upload.finish()
    upload = world.upload(ANY)
    world.write(upload, data_of(6 * PART))
    with pytest.raises(errors.TooLarge) as caught:
        world.write(upload, data_of(2 * PART))
    assert "--write-part-size" in caught.value.hint
    upload.abort()
    world.check_over()


@pytest.mark.slow
def test_a_store_that_took_unequal_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges are copied as they are, and InvalidPart has another meaning."""
    world.client.refuses_unequal_parts = False
    monkeypatch.setattr(parts, "GROWTH", 2)
    upload = world.upload()
    world.write(upload, data_of(8 * PART))
    upload.finish()
    info, data = put(world, 3 * PART)
    upload = world.uploads.upload(KEY, condition=ANY, known_bytes=info.size_bytes)
    upload.copy(info, 0, info.size_bytes)
    world.write(upload, b"appended")
    upload.finish()
    assert world.client.content(KEY) == data + b"appended"
    assert world.client.count("copy_part") == 1
    world.client.inject("complete_upload", Fault(error=errors.S3Error("no", code="InvalidPart")))
    upload = world.upload(ANY)
    world.write(upload, data_of(8 * PART))
    with pytest.raises(errors.S3Error) as caught:
        upload.finish()
    assert "write the file again" not in caught.value.hint
    upload.abort()


def test_a_refusal_of_equal_parts_teaches_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """InvalidPart may also mean that a part is missing."""
    world.client.refuses_unequal_parts = False
    monkeypatch.setattr(parts, "GROWTH", 4)
    world.client.inject("complete_upload", Fault(error=errors.S3Error("no", code="InvalidPart")))
    upload = world.upload(ANY)
    world.write(upload, data_of(2 * PART))
    with pytest.raises(errors.S3Error) as caught:
        upload.finish()
    assert "write the file again" not in caught.value.hint
    upload.abort()
    upload = world.upload(ANY)
    world.write(upload, data_of(8 * PART))
    upload.finish()
    sent = {each.size_bytes for each in world.client.requests if each.kind == "upload_part"}
    assert max(sent) > PART
    world.check_over()


@pytest.mark.parametrize(
    ("sizes", "equal"),
    [
        ([], True),
        ([7], True),
        ([5, 5, 3], True),
        ([5, 5, 5], True),
        ([5, 6], False),
        ([5, 4, 4], False),
    ],
)
def test_equal_parts(sizes: list[int], equal: bool) -> None:
    """The last part may be smaller, not larger."""
    assert are_equal(sizes) is equal
