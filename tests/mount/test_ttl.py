"""Metadata options on a real mount, while another client changes the bucket."""

import contextlib
import errno
import functools
import os
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import Mount, errno_of, eventually, mounted

pytestmark = pytest.mark.mount

COUNT = 60
SIZE = 5000


def body(number: int, mark: bytes = b"x") -> bytes:
    return mark * (SIZE + number)


class Watched:
    """A test's directory of a mount with a ttl, and the requests that it makes there."""

    def __init__(self, mount: Mount, store: Store, prefix: str, seen: list[Exchange]) -> None:
        self.mount = mount
        self.path = mount.path
        self._store = store
        self._prefix = prefix
        self._seen = seen

    def put(self, name: str, data: bytes) -> None:
        self._store.put(self._prefix + name, data)

    def delete(self, name: str) -> None:
        self._store.delete(self._prefix + name)

    def asked(self) -> tuple[int, int, int]:
        """Return the numbers of HEADs, LISTs and GETs, and reset them."""
        seen = self._seen.copy()
        self._seen.clear()
        heads = sum(exchange.method == "HEAD" for exchange in seen)
        lists = sum(exchange.is_list for exchange in seen)
        return heads, lists, sum(exchange.is_data for exchange in seen)


Watch = Callable[..., Watched]


@pytest.fixture(scope="module")
def seen() -> list[Exchange]:
    """The requests of all mounts."""
    return []


@pytest.fixture(scope="module")
def mount_with(
    store: Store, tmp_path_factory: pytest.TempPathFactory, seen: list[Exchange]
) -> Iterator[Callable[..., Mount]]:
    """Mounts by their options, each made when it is first asked for."""
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(FaultyProxy(store.endpoint_url))
        proxy.faults.append(seen.append)

        @functools.cache
        def get(*options: str) -> Mount:
            folder, common = tmp_path_factory.mktemp("ttl"), ["--debug", "--prefix", "ttl/"]
            return stack.enter_context(
                mounted(store, folder, *common, *options, endpoint_url=proxy.url)
            )

        yield get


@pytest.fixture
def watch(store: Store, mount_with: Callable[..., Mount], seen: list[Exchange], own: str) -> Watch:
    """Return a directory of files that no other test uses, listed once, on such a mount."""
    for number in range(COUNT):
        store.put(f"ttl/{own}/{number:03}", body(number))

    def start(*options: str) -> Watched:
        it = Watched(mount_with(*options).part(own), store, f"ttl/{own}/", seen)
        assert len(os.listdir(it.path)) == COUNT
        it.asked()
        return it

    return start


def test_files_in_order(watch: Watch) -> None:
    """Listed files cost one GET each, sent ahead, and no request when they are read again."""
    it = watch("-o", "metadata-ttl=60")
    before = it.mount.counters()
    for number in range(COUNT):
        assert (it.path / f"{number:03}").read_bytes() == body(number)
    heads, lists, gets = it.asked()
    assert (heads, lists) == (0, 0)
    counted = {name: count - before[name] for name, count in it.mount.counters().items()}
    assert gets == COUNT + counted["hedges"] + counted["retries"]
    assert counted["bytes_prefetched"] >= (COUNT - 10) * SIZE
    assert counted["bytes_prefetched_in_vain"] == 0
    for number in range(0, COUNT, 7):
        assert (it.path / f"{number:03}").stat().st_size == SIZE + number
        (it.path / f"{number:03}").read_bytes()
    heads, lists, gets = it.asked()
    assert (heads, lists) == (0, 0)
    assert gets <= COUNT // 7  # the kernel may have dropped some pages


def test_replaced_and_deleted(watch: Watch) -> None:
    """Reads of a deleted version fail, and the next open finds the new version."""
    it = watch("--metadata-ttl", "indefinite")
    for name in ("005", "040"):
        (it.path / name).stat()
    it.put("005", b"another")
    it.delete("040")
    assert errno_of((it.path / "005").read_bytes) == errno.ESTALE
    assert (it.path / "005").read_bytes() == b"another"
    assert errno_of((it.path / "040").read_bytes) in (errno.ENOENT, errno.ESTALE)
    assert errno_of((it.path / "040").read_bytes) == errno.ENOENT
    assert (it.path / "041").read_bytes() == body(41)


def test_a_listing_refreshes(watch: Watch) -> None:
    """After a listing the new version is opened at once."""
    it = watch("--metadata-ttl", "indefinite")
    (it.path / "005").stat()
    (it.path / "006").stat()
    it.put("005", b"another")
    it.delete("006")
    assert len(os.listdir(it.path)) == COUNT - 1
    assert (it.path / "005").read_bytes() == b"another"
    assert errno_of((it.path / "006").read_bytes) == errno.ENOENT


def test_replaced_while_it_is_fetched_ahead(watch: Watch) -> None:
    """What was replaced before it was fetched ahead is read as what it is now."""
    it = watch("-o", "metadata-ttl=60")
    it.put("020", body(20, b"y"))
    for number in range(COUNT):
        path = it.path / f"{number:03}"
        if number == 20:  # it may be opened before S3 has reported the new version
            assert errno_of(path.read_bytes) in (None, errno.ESTALE)
        assert path.read_bytes() == body(number, b"y" if number == 20 else b"x")


def test_o_direct(watch: Watch) -> None:
    """O_DIRECT opens what there is now."""
    it = watch("-o", "metadata-ttl=60")
    (it.path / "003").stat()
    it.put("003", b"another")
    file = os.open(it.path / "003", os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.fstat(file).st_size == len(b"another")
    finally:
        os.close(file)


def test_absent(watch: Watch) -> None:
    """A name that was not there is not asked for, until a listing shows it."""
    it = watch("-o", "metadata-ttl=60")
    for _ in range(3):
        assert not (it.path / "new").exists()
        time.sleep(0.6)
    assert it.asked() == (0, 0, 0)
    it.put("new", b"new")
    assert not (it.path / "new").exists()
    assert "new" in os.listdir(it.path)
    eventually((it.path / "new").exists, within_s=5)
    assert (it.path / "new").read_bytes() == b"new"


def test_absent_for_a_while(watch: Watch) -> None:
    """A new object is visible after the negative ttl, or immediately without one."""
    it = watch("--metadata-ttl", "60", "--negative-metadata-ttl", "2")
    assert not (it.path / "new").exists()
    it.put("new", b"new")
    eventually((it.path / "new").exists, within_s=10)
    assert (it.path / "new").read_bytes() == b"new"


def test_absent_is_not_believed(watch: Watch) -> None:
    """With --negative-metadata-ttl minimal a new object is visible immediately."""
    it = watch("--metadata-ttl", "60", "--negative-metadata-ttl", "minimal")
    assert not (it.path / "new").exists()
    it.put("new", b"new")
    assert (it.path / "new").read_bytes() == b"new"


def test_one_file_again_and_again(watch: Watch) -> None:
    """By default a file that is checked all the time costs one or two requests a second."""
    it = watch()
    until = time.monotonic() + 4
    while time.monotonic() < until:
        assert (it.path / "007").stat().st_size == SIZE + 7
    assert sum(it.asked()) <= 10


def test_nothing_is_believed(watch: Watch) -> None:
    """With --metadata-ttl 0 each stat asks S3, and shows the newest version."""
    it = watch("--metadata-ttl", "0")
    for number in range(5):
        it.put("001", b"x" * number)
        assert (it.path / "001").stat().st_size == number
        assert it.asked()[1] >= 1
