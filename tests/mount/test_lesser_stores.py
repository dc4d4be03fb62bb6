"""Mounts of stores that support less than S3: nothing is lost, mixed up or missing."""

import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, Fault, FaultyProxy
from tests.lesser import (
    PAGE,
    RefuseUnequalParts,
    change_etags,
    only_v1,
    refuse_checksums,
    refuse_conditions,
    refuse_copied_parts,
    refuse_if_match,
    small_pages,
    without_header,
    without_lengths,
    without_parameter,
)
from tests.mount.mounting import (
    Mount,
    content,
    errno_of,
    eventually,
    mounted,
    pending,
    run,
    store_options,
)
from tests.random_bytes import random_bytes

pytestmark = pytest.mark.mount

MIB = 1 << 20
#: Files of three parts.
PART = 5 * MIB
SIZE = 12 * MIB
OLD = partial(random_bytes, 1, SIZE)
NEW = partial(random_bytes, 2, SIZE)


@contextmanager
def mounted_as(
    store: Store,
    folder: Path,
    fault: Fault | None,
    prefix: str,
    *more: str,
    answers: Sequence[Fault] = (),
) -> Iterator[Mount]:
    """Mount a prefix of the store as a store that supports less, or answers in another form."""
    options = ["--debug", "--prefix", prefix, "--allow-overwrite", "--allow-append", *more]
    options += ["--write-part-size", str(PART)]
    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.before.extend([fault] if fault else [])
        proxy.faults.extend(answers)
        with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
            yield mount


@pytest.mark.parametrize(
    "fault", [only_v1, without_parameter("start-after")], ids=["ListObjects", "no start-after"]
)
def test_listed_whole(flat_store: Store, folder: Path, fault: Fault) -> None:
    """All names of several pages are listed, once each, and each can be looked up."""

    def page_by_page(exchange: Exchange) -> None:
        small_pages(exchange)
        fault(exchange)

    names = [f"{n:04d}" for n in range(5 * PAGE // 2)]
    flat_store.put_all({f"lesser/{name}/x": b"" for name in names})
    with mounted_as(flat_store, folder, page_by_page, "lesser/") as mount:
        assert sorted(os.listdir(mount.path)) == names
        for name in names[:: PAGE // 4]:
            assert os.listdir(mount.path / name) == ["x"]
            assert (mount.path / name / "x").stat().st_size == 0
        assert not (mount.path / "0250-none").exists()
    flat_store.delete_all(f"lesser/{name}/x" for name in names)


def test_replaced_where_if_match_is_ignored(flat_store: Store, folder: Path) -> None:
    """A reader still sees one version, by the ETag of what comes: old bytes, then ESTALE."""
    with mounted_as(flat_store, folder, without_header("If-Match"), "ignored/") as mount:
        for size in (MIB // 2, SIZE):
            key, path = f"ignored/{size}", mount.path / f"{size}"
            flat_store.put(key, OLD()[:size])
            with path.open("rb", buffering=0) as file:
                got = file.read(100_000)
                flat_store.put(key, NEW()[:size])
                error = None
                try:
                    while chunk := file.read(MIB):
                        got += chunk
                except OSError as failure:
                    error = failure.errno
            assert OLD().startswith(got)
            assert error == errno.ESTALE or (error is None and got == OLD()[:size])
            assert path.read_bytes() == NEW()[:size]


def unquoted_lists(exchange: Exchange) -> None:
    """List ETags without quotes, and send them with quotes, like NetApp ONTAP."""
    if exchange.is_list:
        change_etags(lambda etag: etag.strip('"'))(exchange)


def weak_etags(exchange: Exchange) -> None:
    """Mark ETags as weak, only in headers, like proxies that may compress."""
    if not exchange.is_list:
        change_etags(lambda etag: f"W/{etag}")(exchange)


BEFORE = partial(random_bytes, 1, 3 * MIB)
AFTER = partial(random_bytes, 2, 3 * MIB)
OTHER_ANSWERS: dict[str, tuple[Fault | None, Fault]] = {
    "unquoted in listings": (None, unquoted_lists),
    "weak in headers": (None, weak_etags),
    "weak, and never a match": (refuse_if_match, weak_etags),
    "no lengths": (None, without_lengths),
}


@pytest.mark.parametrize("kind", OTHER_ANSWERS)
def test_answers_in_other_forms(flat_store: Store, folder: Path, kind: str) -> None:
    """Files can be read repeatedly, changed and replaced; --check can read as well."""
    fault, answer = OTHER_ANSWERS[kind]
    prefix = f"forms-{len(kind)}/"
    bodies = {"empty": b"", "small": b"hello", "large": BEFORE()}
    for name, body in bodies.items():
        flat_store.put(prefix + name, body)
    with mounted_as(flat_store, folder, fault, prefix, answers=[answer]) as mount:
        for _ in range(2):  # the second time the kernel has pages, and HEAD suffices
            for name, body in bodies.items():
                assert (mount.path / name).stat().st_size == len(body)
                assert (mount.path / name).read_bytes() == body
        flat_store.put(f"{prefix}large", AFTER())
        eventually(lambda: errno_of(lambda: (mount.path / "large").read_bytes()) is None)
        eventually(lambda: (mount.path / "large").read_bytes() == AFTER())
        (mount.path / "written").write_bytes(AFTER())
        assert (mount.path / "written").read_bytes() == AFTER()
        with (mount.path / "small").open("ab") as file:
            file.write(b", world")
        assert (mount.path / "small").read_bytes() == b"hello, world"
        assert not [line for line in mount.log.splitlines() if "level=warning" in line]
    with FaultyProxy(flat_store.endpoint_url) as proxy:
        proxy.before.extend([fault] if fault else [])
        proxy.faults.append(answer)
        options = store_options(flat_store, endpoint_url=proxy.url)
        arguments = ["--check", flat_store.bucket, "--prefix", prefix, *options]
        found = run(*arguments, env=flat_store.environment)
    assert found.returncode == 0, found.stdout


def whole_for_a_range(exchange: Exchange) -> None:
    """Ignore Range: answer with the whole object."""
    if exchange.is_data:
        exchange.request_headers.pop("Range", None)


def no_etag(exchange: Exchange) -> None:
    """Omit the ETag in answers to GET."""
    if exchange.is_data:
        exchange.drop_header("etag")


UNUSABLE: dict[str, tuple[Fault | None, Fault | None, str]] = {
    "no ETag": (None, no_etag, "has no ETag of the object"),
    "no ranges": (whole_for_a_range, None, "does the store ignore Range?"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_answers_that_cannot_be_read(flat_store: Store, folder: Path, kind: str) -> None:
    """The read is EIO after three tries, with a log line that says why, as does --check."""
    fault, answer, reason = UNUSABLE[kind]
    flat_store.put("unusable/file", BEFORE())
    with FaultyProxy(flat_store.endpoint_url) as proxy:
        proxy.before.extend([fault] if fault else [])
        proxy.faults.extend([answer] if answer else [])
        options = store_options(flat_store, endpoint_url=proxy.url)
        where = [flat_store.bucket, "--prefix", "unusable/"]
        with mounted(flat_store, folder, "--prefix", "unusable/", endpoint_url=proxy.url) as mount:
            (mount.path / "file").stat()
            proxy.seen.clear()
            assert errno_of((mount.path / "file").open) == errno.EIO
            assert len(proxy.seen) == 3
            (line,) = [line for line in mount.log.splitlines() if "level=warning" in line]
            assert reason in line
            assert "a proxy may change answers" in line
        found = run("--check", *where, *options, env=flat_store.environment)
    assert found.returncode == 1
    assert reason in found.stdout
    assert "s3:GetObject" not in found.stdout


@pytest.mark.parametrize("first", [100, SIZE])
def test_written_where_checksums_are_refused(flat_store: Store, folder: Path, first: int) -> None:
    """Files of any size are written and read without checksums; the log has one warning."""
    prefix = f"refused-{first}/"
    with mounted_as(flat_store, folder, refuse_checksums, prefix) as mount:
        for size in dict.fromkeys((first, 100, SIZE)):
            path = mount.path / f"{size}"
            for data in (OLD()[:size], NEW()[:size]):
                path.write_bytes(data)
                assert content(flat_store, f"{prefix}{size}") == data
                assert path.read_bytes() == data
        with (mount.path / "100").open("ab") as file:
            file.write(b"more")
        assert content(flat_store, f"{prefix}100") == NEW()[:100] + b"more"
        warnings = [line for line in mount.log.splitlines() if "level=warning" in line]
        assert len(warnings) == 1
        assert "this server accepts no checksums" in warnings[0]
    assert pending(flat_store, prefix) == []


@pytest.mark.parametrize(
    ("status", "code", "staged"),
    [
        (501, "NotImplemented", False),
        (400, "InvalidRequest", True),
        (405, "MethodNotAllowed", False),
    ],
)
def test_written_where_no_parts_are_copied(
    flat_store: Store, folder: Path, status: int, code: str, staged: bool
) -> None:
    """Appends to large files and changes in them work; the log has one line."""
    prefix = f"uncopied-{status}-{staged}/"
    staging = folder / "staging"
    staging.mkdir(mode=0o700)
    more = ["--staged-writes", str(staging)] if staged else []
    flat_store.put(f"{prefix}file", OLD())
    expected = bytearray(OLD())
    fault = refuse_copied_parts(status, code)
    with mounted_as(flat_store, folder, fault, prefix, *more) as mount:
        for line in (b"first\n", b"second\n"):
            with (mount.path / "file").open("r+b" if staged else "ab") as file:
                file.write(line)
            if staged:
                expected[: len(line)] = line
            else:
                expected += line
            assert content(flat_store, f"{prefix}file") == bytes(expected)
            assert (mount.path / "file").read_bytes() == expected
        assert mount.log.count("this server cannot copy parts of objects") == 1
    assert pending(flat_store, prefix) == []


@pytest.mark.parametrize("staged", [False, True])
def test_written_where_parts_have_to_have_one_size(
    flat_store: Store, folder: Path, staged: bool
) -> None:
    """Appends to large files and changes in their middle use only parts that the store accepts."""
    prefix = f"equal-{staged}/"
    staging = folder / "staging"
    staging.mkdir(mode=0o700)
    more = ["--staged-writes", str(staging)] if staged else []
    refuse = RefuseUnequalParts()
    with mounted_as(flat_store, folder, refuse, prefix, *more) as mount:
        path = mount.path / "file"
        path.write_bytes(OLD())
        expected = bytearray(OLD())
        assert content(flat_store, f"{prefix}file") == bytes(expected)
        for line in (b"first\n", NEW()[: 6 * MIB]):
            with path.open("ab") as file:
                file.write(line)
            expected += line
            assert content(flat_store, f"{prefix}file") == bytes(expected)
        if staged:
            for offset in (6 * MIB, 10 * MIB + 3):
                with path.open("r+b") as file:
                    file.seek(offset)
                    file.write(b"changed")
                expected[offset : offset + 7] = b"changed"
                assert content(flat_store, f"{prefix}file") == bytes(expected)
        assert path.read_bytes() == expected
        assert "level=warning" not in mount.log
    assert refuse.refused == 0
    assert pending(flat_store, prefix) == []


def test_written_where_conditions_are_refused(flat_store: Store, folder: Path) -> None:
    """Many files written at the same time all arrive."""
    with mounted_as(flat_store, folder, refuse_conditions, "unconditional/") as mount:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: (mount.path / f"{n}").write_bytes(b"%d" % n), range(40)))
        for n in range(40):
            assert content(flat_store, f"unconditional/{n}") == b"%d" % n
