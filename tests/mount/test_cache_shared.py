"""The shared cache in a bucket, on real mounts: what hosts share, and what goes wrong."""

import json
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mountpoint.cache.shared.filling import PREFIX
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.caches import blocks as disk_blocks
from tests.mount.mounting import Mount, eventually, mounted, run, store_options
from tests.mount.test_ctl import ctl
from tests.mount.test_keep_alive import Kept

pytestmark = pytest.mark.mount

BUCKET = "shared-cache"
FILES = 20
LARGE = (1 << 20) + 1
BODY = random.Random(21).randbytes(LARGE)


def body(number: int) -> bytes:
    """Return the bytes of a small object."""
    return BODY[number * 1000 :][: 30_000 + number]


@pytest.fixture(scope="module")
def objects(store: Store) -> None:
    """Objects `shared/NUMBER`, and a large one elsewhere, which is not fetched ahead."""
    store.put_all({f"shared/{number:02}": body(number) for number in range(FILES)})
    store.put("shared/more/large", BODY)


@pytest.fixture
def bucket(store: Store, objects: None) -> Iterator[Any]:
    """A boto3 client for the cache bucket, which is empty."""
    client = store.client()
    client.create_bucket(Bucket=BUCKET)
    yield client
    for key in all_keys(client):
        client.delete_object(Bucket=BUCKET, Key=key)
    client.delete_bucket(Bucket=BUCKET)


def all_keys(client: Any) -> list[str]:
    """Return the keys of the cache bucket."""
    return [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def blocks(client: Any) -> list[str]:
    """Return the keys of the blocks in the cache bucket."""
    return [key for key in all_keys(client) if key != f"{PREFIX}check"]


def options(*others: str) -> list[str]:
    """Return the options of a mount with the shared cache."""
    return ["--prefix", "shared/", "--debug", "--cache-xz", BUCKET, *others]


def read_all(mount: Mount) -> None:
    """Read the small files, after their names were listed."""
    names = sorted(each for each in os.listdir(mount.path) if each != "more")
    assert len(names) == FILES
    for name in names:
        assert (mount.path / name).read_bytes() == body(int(name))


def fill(store: Store, folder: Path, client: Any) -> None:
    """Let a mount read all small files, and send them to the cache."""
    with mounted(store, folder, *options()) as mount:
        read_all(mount)
        eventually(lambda: len(blocks(client)) == FILES)


def test_two_hosts(store: Store, tmp_path_factory: pytest.TempPathFactory, bucket: Any) -> None:
    """What one mount has read, another mount reads from the cache bucket, after the end of the
    first one, too; large files are not kept.
    """
    first, second = (tmp_path_factory.mktemp("host") for _ in range(2))
    with mounted(store, first, *options()) as one, mounted(store, second, *options()) as other:
        read_all(one)
        assert (one.path / "more/large").read_bytes() == BODY
        eventually(lambda: len(blocks(bucket)) == FILES)
        before = one.counters()
        assert before["cache_shared_misses"] == FILES
        assert before["cache_shared_bytes_written"] == sum(len(body(n)) for n in range(FILES))
        read_all(other)
        after = other.counters()
        assert (after["gets"], after["heads"]) == (0, 0)
        assert (after["cache_shared_hits"], after["cache_shared_misses"]) == (FILES, 0)
    with mounted(store, first, *options()) as one:
        read_all(one)
        assert one.counters()["gets"] == 0
    assert len(blocks(bucket)) == FILES
    assert all("shared/" not in key for key in blocks(bucket))


def test_together_with_a_directory(store: Store, folder: Path, tmp_path: Path, bucket: Any) -> None:
    """What comes from the bucket is kept on disk, and read from there the next time."""
    fill(store, folder, bucket)
    both = options("--cache", str(tmp_path / "cache"))
    with mounted(store, folder, *both) as mount:
        read_all(mount)
        counters = mount.counters()
        assert (counters["gets"], counters["cache_shared_hits"]) == (0, FILES)
    with mounted(store, folder, *both) as mount:
        read_all(mount)
        counters = mount.counters()
        assert (counters["gets"], counters["cache_shared_hits"]) == (0, 0)
        assert counters["cache_hits"] >= FILES


def test_what_is_written_is_kept(
    store: Store, tmp_path_factory: pytest.TempPathFactory, bucket: Any
) -> None:
    """With --cache-writes other hosts read small files from the cache that were written here."""
    first, second = (tmp_path_factory.mktemp("host") for _ in range(2))
    try:
        with mounted(store, first, *options("--cache-writes")) as one:
            (one.path / "more/written").write_bytes(BODY[:-1])
            (one.path / "more/larger").write_bytes(BODY)
            eventually(lambda: len(blocks(bucket)) == 1)
        with mounted(store, second, *options()) as other:
            os.listdir(other.path / "more")
            assert (other.path / "more/written").read_bytes() == BODY[:-1]
            assert (other.path / "more/larger").read_bytes() == BODY
            assert other.counters()["cache_shared_hits"] == 1
    finally:
        store.delete_all(["shared/more/written", "shared/more/larger"])  # other tests count files


def warm(*arguments: object, code: int = 0) -> dict[str, Any]:
    """Run `mount-s3ctl warm`; return its result."""
    result = ctl("warm", "--json", *map(str, arguments))
    assert result.returncode == code, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def requests(proxy: FaultyProxy) -> Counter[str]:
    """Return how many requests for objects came to each bucket, and forget them."""
    found: Counter[str] = Counter()
    for method, target in proxy.seen:
        bucket, _, key = target.lstrip("/").partition("/")
        if key and not key.startswith("?"):
            found[f"{method} {'cache' if bucket == BUCKET else 'mounted'}"] += 1
    proxy.seen.clear()
    return found


@pytest.mark.parametrize("ttl", ["minimal", "300"])
def test_warming(store: Store, folder: Path, bucket: Any, ttl: str) -> None:
    """The bucket gets each small file once, for a HEAD, a GET and a PUT; other hosts read them from
    there.
    """
    with FaultyProxy(store.endpoint_url) as proxy:
        quiet = options("--metadata-ttl", ttl)
        with mounted(store, folder, *quiet, endpoint_url=proxy.url) as mount:
            requests(proxy)
            planned = warm("--dry-run", mount.path)
            assert requests(proxy) == {"HEAD cache": FILES}
            found = (planned["files"], planned["to_send"], planned["too_large"])
            assert found == (FILES + 1, FILES, 1)
            assert (planned["least_requests"], planned["most_requests"]) == (FILES, FILES)
            assert planned["to_fetch_bytes"] == sum(len(body(n)) for n in range(FILES))
            assert blocks(bucket) == []

            done = warm(mount.path)
            assert len(blocks(bucket)) == FILES
            # What the dry run has learned is known for a minute.
            assert requests(proxy) == {"GET mounted": FILES, "PUT cache": FILES}
            assert (done["done"], done["sent"], done["failed"]) == (FILES, FILES, 0)
            assert done["fetched_bytes"] == planned["to_fetch_bytes"]

            again = warm(mount.path)
            assert requests(proxy) == {}
            assert (again["done"], again["sent"], again["fetched_bytes"]) == (FILES, 0, 0)
            assert again["cached_bytes"] == planned["to_fetch_bytes"]

        for key in blocks(bucket)[:3]:
            bucket.delete_object(Bucket=BUCKET, Key=key)
        with mounted(store, folder, *options(), endpoint_url=proxy.url) as mount:
            assert warm("--dry-run", mount.path)["to_send"] == 3
            assert warm(mount.path)["sent"] == 3
            assert len(blocks(bucket)) == FILES
            read_all(mount)
            assert mount.counters()["gets"] == 3


def test_warming_both_caches(store: Store, folder: Path, tmp_path: Path, bucket: Any) -> None:
    """Each cache gets what it lacks. What is on disk, and in the kernel's cache, is not fetched."""
    disk = tmp_path / "cache"
    with mounted(store, folder, *options("--cache", str(disk))) as mount:
        done = warm(mount.path)
        assert (done["done"], done["sent"], done["too_large"]) == (FILES + 1, FILES, 0)
        assert (len(disk_blocks(disk)), len(blocks(bucket))) == (FILES + 2, FILES)
        read_all(mount)
    for key in blocks(bucket):
        bucket.delete_object(Bucket=BUCKET, Key=key)
    with mounted(store, folder, *options("--cache", str(disk))) as mount:
        read_all(mount)
        assert mount.counters()["gets"] == 0
        done = warm(mount.path)
        assert (done["sent"], done["fetched_bytes"], done["to_fetch_bytes"]) == (FILES, 0, 0)
        assert mount.counters()["gets"] == 0
        assert len(blocks(bucket)) == FILES


def test_warming_a_bucket_that_refuses(store: Store, folder: Path, bucket: Any) -> None:
    """Blocks that the bucket refuses are sent again when it takes them."""

    def refuse(exchange: Exchange) -> None:
        if exchange.is_write:
            exchange.refuse(403, "AccessDenied")
            proxy.before.clear()

    with (
        FaultyProxy(store.endpoint_url) as proxy,
        mounted(store, folder, *options(), endpoint_url=proxy.url) as mount,
    ):
        proxy.before.append(refuse)
        assert warm(mount.path / "00", mount.path / "01")["done"] == 2
        assert len(blocks(bucket)) == 2


def test_bad_blocks(store: Store, folder: Path, bucket: Any) -> None:
    """Damaged blocks, and blocks of other objects, are noticed, not used, and replaced."""
    fill(store, folder, bucket)
    keys = blocks(bucket)
    contents = [bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys[:3]]
    damaged = bytearray(contents[0])
    damaged[777] ^= 1
    bucket.put_object(Bucket=BUCKET, Key=keys[0], Body=bytes(damaged))
    bucket.put_object(Bucket=BUCKET, Key=keys[1], Body=contents[2])
    bucket.put_object(Bucket=BUCKET, Key=keys[2], Body=contents[2][:-1])
    with mounted(store, folder, *options()) as mount:
        read_all(mount)
        counters = mount.counters()
        assert (counters["gets"], counters["cache_shared_bad_blocks"]) == (3, 3)
        assert mount.log.count("a damaged block in the shared cache is not used") == 3
        eventually(lambda: mount.counters()["cache_shared_bytes_written"] > 0)
    for key, content in zip(keys, contents, strict=False):
        assert bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read() == content


def test_a_new_version(store: Store, folder: Path, bucket: Any) -> None:
    """An object that was replaced has another block."""
    store.put("shared/00", body(0))
    fill(store, folder, bucket)
    store.put("shared/00", body(0)[::-1])
    try:
        with mounted(store, folder, *options()) as mount:
            os.listdir(mount.path)
            assert (mount.path / "00").read_bytes() == body(0)[::-1]
        assert len(blocks(bucket)) == FILES + 1
    finally:
        store.put("shared/00", body(0))


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_bucket_that_fails(store: Store, folder: Path, bucket: Any, status: int) -> None:
    """Reads go on from the mounted bucket; the cache bucket is asked no more for a while."""
    fill(store, folder, bucket)
    codes = {403: "AccessDenied", 404: "NoSuchBucket", 503: "SlowDown"}

    def refuse(exchange: Exchange) -> None:
        if exchange.target.startswith(f"/{BUCKET}/"):
            exchange.refuse(status, codes[status])

    with (
        FaultyProxy(store.endpoint_url) as proxy,
        mounted(store, folder, *options(), endpoint_url=proxy.url) as mount,
    ):
        proxy.before.append(refuse)
        read_all(mount)
        assert mount.log.count("the cache is not used for reading at the moment") == 1
        counters = mount.counters()
        assert counters["gets"] == FILES
        assert 0 < counters["cache_shared_errors"] <= 2 * 16  # files fetched ahead


def test_a_bucket_that_is_silent(store: Store, folder: Path, bucket: Any) -> None:
    """A late answer is given up after a second or two, and all others with it."""
    fill(store, folder, bucket)

    def delay(exchange: Exchange) -> None:
        if exchange.target.startswith(f"/{BUCKET}/"):
            exchange.delay_s = 30.0

    with (
        FaultyProxy(store.endpoint_url) as proxy,
        mounted(store, folder, *options(), endpoint_url=proxy.url) as mount,
    ):
        proxy.faults.append(delay)
        read_all(mount)
        assert "an answer is taking too long" in mount.log
        assert mount.counters()["cache_shared_hits"] == 0


def test_a_cache_that_cannot_be_used(store: Store, folder: Path, bucket: Any) -> None:
    """Mounting fails, with the reason and what to do."""

    def start(*arguments: str, url: str | None = None) -> str:
        mnt = folder / "mnt"
        mnt.mkdir(exist_ok=True)
        where = store_options(store, endpoint_url=url)
        done = run(store.bucket, mnt, *where, *arguments, env=store.environment)
        assert done.returncode == 1
        return done.stderr

    message = start("--cache-xz", "there-is-no-such-bucket")
    assert "the shared cache cannot be used" in message
    assert "there-is-no-such-bucket" in message
    assert "cannot be its own cache" in start("--cache-xz", store.bucket)
    assert "is not a bucket name" in start("--cache-xz", "no/bucket")

    def refuse(exchange: Exchange) -> None:
        if exchange.is_write:
            exchange.refuse(403, "AccessDenied")

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.before.append(refuse)
        message = start("--cache-xz", BUCKET, url=proxy.url)
        assert f"the shared cache in bucket '{BUCKET}' cannot be written or read" in message


def test_a_death_while_nothing_answers(store: Store, folder: Path, bucket: Any) -> None:
    """With --keep-alive the next process goes on with both buckets, without asking for either."""
    with (
        FaultyProxy(store.endpoint_url) as proxy,
        mounted(store, folder, *options("--keep-alive"), endpoint_url=proxy.url) as it,
    ):
        mount, outage = Kept(it), threading.Event()

        def lose(exchange: Exchange) -> None:
            exchange.taken = 0
            outage.set()

        proxy.before.append(lose)
        mount.kill()
        eventually(lambda: "this one goes on" in it.log)
        assert not outage.is_set()
        proxy.before.clear()
        read_all(it)
        eventually(lambda: len(blocks(bucket)) == FILES)
