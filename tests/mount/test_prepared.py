"""Small files, which the mount opens, reads and closes without the interpreter."""

import contextlib
import errno
import itertools
import mmap
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mountpoint.mount.control import ask
from mountpoint.mount.kept import keeper
from tests.conftest import Store
from tests.mount.caches import blocks, forget_pages
from tests.mount.mounting import Mount, content, eventually, mounted
from tests.mount.test_cache import damage
from tests.mount.test_ctl import done, own_socket
from tests.mount.test_keep_alive import Kept
from tests.mount.test_storm import EXPECTED, NAMES, OPTIONS, STREAMED, THREADS, Storm
from tests.soak import SEED, count_cases, examples, rounds

pytestmark = pytest.mark.mount

COUNT = 200
#: The first file of each directory. It is never read, and so never prepared: when it is opened,
#: those that follow are.
FIRST = "0"
ATTEMPTS = 500
REQUESTS = ("gets", "heads", "lists")


def made(count: int) -> dict[str, bytes]:
    """Return the bytes of small files by their names."""
    drawn = random.Random(count)
    sizes = [1, 4096, *(drawn.randrange(2, 60_000) for _ in range(count - 2))]
    files = {f"file-{number:03}": drawn.randbytes(size) for number, size in enumerate(sizes)}
    return files | {"it": drawn.randbytes(30_000)}


class Opened:
    """A directory of small files on a mount, which its data cache has."""

    def __init__(self, mount: Mount, name: str, files: Mapping[str, bytes]) -> None:
        self.mount = mount
        self.path = mount.root / name
        self.files = files

    def look_up(self) -> None:
        """Let the kernel look up all files."""
        with os.scandir(self.path) as entries:
            assert all(each.stat().st_size for each in entries)

    def stats(self) -> dict[str, Any]:
        """Return the mount's numbers."""
        return ask(own_socket(self.mount), "stats")

    def opens(self) -> int:
        """Return how many files were opened in the lane so far."""
        found: int = self.stats()["meters"]["opens_in_lane"]
        return found

    def open_files(self) -> int:
        """Return how many files are open."""
        found: int = self.stats()["status"]["open_files"]
        return found

    def open(self, name: str) -> int:
        """Open a file in the lane, when it has been prepared; return the descriptor."""
        for _ in range(ATTEMPTS):
            self._read_and_close(os.open(self.path / FIRST, os.O_RDONLY))
            before = self.opens()
            descriptor = os.open(self.path / name, os.O_RDONLY)
            if self.opens() > before:
                return descriptor
            self._read_and_close(descriptor)
        raise AssertionError(f"{name} is never opened in the lane")

    def _read_and_close(self, descriptor: int) -> None:
        """Read a file through the mount: if programs read nothing of files, none are prepared."""
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(descriptor, 1 << 20, 0)
        os.close(descriptor)

    @contextlib.contextmanager
    def held(self, *names: str) -> Iterator[list[int]]:
        """Open files in the lane, and close them at the end."""
        with contextlib.ExitStack() as closing:
            descriptors = []
            for name in names:
                descriptors.append(self.open(name))
                closing.callback(os.close, descriptors[-1])
            yield descriptors

    def read_all(self) -> None:
        """Read all files."""
        for name, body in self.files.items():
            assert (self.path / name).read_bytes() == body, name

    def read_held(self, does: Callable[[], object] = lambda: None) -> None:
        """Open files in the lane, do something, and read them."""
        names = list(self.files)[5:9]
        with self.held(*names) as descriptors:
            does()
            for descriptor, name in zip(descriptors, names, strict=True):
                assert os.pread(descriptor, 1 << 20, 0) == self.files[name]

    def all_are_closed(self) -> None:
        """Wait until the mount has no open file."""
        eventually(lambda: self.open_files() == 0)


@contextlib.contextmanager
def meanwhile(threads: int, action: Callable[[random.Random], object]) -> Iterator[None]:
    """Repeat an action in several threads until the block ends, and raise their errors."""
    print("seed", SEED)
    ending = threading.Event()

    def run(number: int) -> None:
        drawn = random.Random(SEED + number)
        while not ending.is_set():
            action(drawn)

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(run, number) for number in range(threads)]
        try:
            yield
        finally:
            ending.set()
            for each in running:
                each.result()


@contextlib.contextmanager
def directories(
    store: Store, folder: Path, files: Mapping[str, bytes], *options: str, how: str, count: int = 1
) -> Iterator[list[Opened]]:
    """Mount directories with the same files at the prefix `prepared-HOW/`; the cache has them."""
    names, objects = [f"place-{number}" for number in range(count)], {FIRST: b"first", **files}
    bodies = itertools.product(names, objects.items())
    store.put_all({f"prepared-{how}/{at}/{name}": body for at, (name, body) in bodies})
    if how.endswith("staged"):
        (folder / "stage").mkdir(mode=0o700)
        options += ("--staged-writes", str(folder / "stage"))
    cache = ["--cache", str(folder / "cache"), "--cache-writes", "--metadata-ttl", "300"]
    where = ["--debug", "--prefix", f"prepared-{how}/"]
    with mounted(store, folder, *where, *cache, *OPTIONS, *options) as mount:
        done("warm", mount.path)
        them = [Opened(mount, name, files) for name in names]
        for each in them:
            each.look_up()
        yield them


@pytest.fixture(scope="module")
def read_only(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A directory that no test changes."""
    folder = tmp_path_factory.mktemp("prepared")
    with directories(store, folder, made(COUNT), how="read") as (it,):
        yield it


@pytest.fixture(scope="module", params=["streamed", "staged"])
def how(request: pytest.FixtureRequest) -> str:
    """How files are written."""
    return str(request.param)


@pytest.fixture(scope="module")
def places(
    store: Store, tmp_path_factory: pytest.TempPathFactory, how: str
) -> Iterator[Iterator[Opened]]:
    """Directories with the same files on one mount, each for one test."""
    folder, count = tmp_path_factory.mktemp(how), len(CHANGES) + 3
    with directories(store, folder, made(12), how=how, count=count) as them:
        yield iter(them)


@pytest.fixture
def place(places: Iterator[Opened]) -> Opened:
    """One of them."""
    return next(places)


def test_files_in_order(read_only: Opened) -> None:
    """Most are opened in the lane, without a request, and all operations are counted."""
    it, before = read_only, read_only.stats()
    it.read_all()
    it.all_are_closed()
    after = it.stats()
    assert after["meters"]["opens_in_lane"] - before["meters"]["opens_in_lane"] >= COUNT * 3 // 4
    for name in REQUESTS:
        assert (name, after["counters"][name]) == (name, before["counters"][name])
    size_bytes = sum(map(len, it.files.values()))
    assert after["counters"]["bytes_read"] - before["counters"]["bytes_read"] == size_bytes
    for name in ("open", "read", "release"):
        counts = [each["meters"]["operations"][name]["us"]["count"] for each in (before, after)]
        assert counts[1] - counts[0] >= COUNT, name


def test_without_a_cache(store: Store, folder: Path) -> None:
    """Files that the kernel knows from a listing are fetched by their opens, once each."""
    files, count = made(60), 10
    bodies = itertools.product(range(count), files.items())
    store.put_all({f"prepared-s3/{number}/{name}": body for number, (name, body) in bodies})
    with mounted(store, folder, "--debug", "--prefix", "prepared-s3/") as mount:
        for number in range(count):  # in the first one it is learned how long requests take
            it = Opened(mount, str(number), files)
            it.look_up()
            before = it.stats()
            it.read_all()
            it.all_are_closed()
            after = it.stats()
            if (
                after["meters"]["opens_in_lane"] - before["meters"]["opens_in_lane"]
                > len(files) / 2
            ):
                break
        else:
            raise AssertionError("few files are opened in the lane")
        requests = {each: after["counters"][each] - before["counters"][each] for each in REQUESTS}
        assert requests == {"gets": len(files), "heads": 0, "lists": 0}


def test_open_files_are_counted(read_only: Opened) -> None:
    """The stats have the files that are open, and the command shows them."""
    with read_only.held(*sorted(read_only.files)[3:13]):
        eventually(lambda: read_only.open_files() == 10)
        assert "10 open" in done("status", read_only.mount.root)
    read_only.all_are_closed()


def test_many_threads(read_only: Opened) -> None:
    """Sixteen threads read in random order: all, some bytes, at the end, and mapped."""
    it, before = read_only, read_only.opens()
    for name in it.files:
        forget_pages(it.path / name)

    print("seed", SEED)

    def read(number: int) -> None:
        drawn = random.Random(SEED + number)
        for _ in range(60):
            name, body = drawn.choice(list(it.files.items()))
            size = len(body)
            with (it.path / name).open("rb", buffering=0) as file:
                match drawn.randrange(4):
                    case 0:
                        assert file.readall() == body
                    case 1:
                        for offset in [drawn.randrange(size) for _ in range(4)]:
                            assert os.pread(file.fileno(), 9, offset) == body[offset:][:9]
                    case 2:
                        for offset in (size - 1, size, size + 1, size + (1 << 20)):
                            assert os.pread(file.fileno(), 5000, offset) == body[offset:]
                    case _:
                        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                            assert mapped[:] == body
            if drawn.random() < 0.2:
                forget_pages(it.path / name)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, range(16)))
    assert it.opens() - before >= 100
    it.all_are_closed()


@pytest.mark.parametrize("how", ["removed", "flipped", "empty"])
@pytest.mark.parametrize("when", ["prepared", "open"])
def test_a_bad_block(read_only: Opened, how: str, when: str) -> None:
    """What the cache has lost comes from S3, in one request."""
    it, name = read_only, random.Random(f"{how} {when}").choice(sorted(read_only.files)[2:])
    cache = it.mount.root.parent / "cache"
    (block,) = [each for each in blocks(cache) if it.files[name] in each.read_bytes()]
    descriptor = it.open(name)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        before = it.stats()
        if how == "removed":
            block.unlink()
        else:
            damage(block, how)
        if when == "prepared":
            os.close(descriptor)
            descriptor = os.open(it.path / name, os.O_RDONLY)
            assert it.opens() == before["meters"]["opens_in_lane"] + 1
        assert os.pread(descriptor, 1 << 20, 0) == it.files[name]
        assert it.stats()["counters"]["gets"] == before["counters"]["gets"] + 1
    finally:
        os.close(descriptor)
    it.all_are_closed()
    eventually(block.exists)  # fetched anew, for the tests that follow


#: What a shell does to the file `it`, and what that makes of its bytes.
CHANGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "replaced": ("printf new > it", lambda old: b"new"),
    "emptied": ("truncate -s 0 it", lambda old: b""),
    "appended": ("printf more >> it", lambda old: old + b"more"),
    "made anew": ("rm it && test ! -e it && printf new > it", lambda old: b"new"),
    "renamed over": ("printf new > other && mv other it", lambda old: b"new"),
    "renamed": ("mv it away && test ! -e it && mv away it", lambda old: old),
    "cut": ("truncate -s 2000 it", lambda old: old[:2000]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_while_it_is_open(place: Opened, store: Store, how: str, change: str) -> None:
    """A reader keeps its version, whole; opens that follow see the newest, in the lane, too."""
    if (how, change) == ("streamed", "cut"):
        pytest.skip("streamed files are not cut in the middle")
    it, (script, expected) = place, CHANGES[change]
    path, old, new = it.path / "it", it.files["it"], expected(it.files["it"])
    with it.held("it", "it") as descriptors:
        assert os.pread(descriptors[0], 100, 0) == old[:100]
        subprocess.run(["sh", "-c", script], cwd=it.path, check=True)
        assert path.read_bytes() == new
        assert path.stat().st_size == len(new)
        for descriptor in descriptors:
            assert os.pread(descriptor, len(old) + 10, 0) == old
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(descriptor, len(old) + 10, 0) == old
        assert path.read_bytes() == new
    eventually(lambda: content(store, f"prepared-{how}/{it.path.name}/it") == new)
    if change not in ("emptied", "renamed"):  # each open of what was renamed asks S3
        with it.held("it") as (descriptor,):
            assert os.pread(descriptor, len(new) + 10, 0) == new
    it.read_held()
    it.all_are_closed()


class Versions:
    """What the files of a directory may contain, while one thread changes them."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        # dependencies
        self._folder = folder
        # mutable; the first and the last version that a read may find
        self._begun: dict[str, list[bytes]] = {name: [b""] for name in names}
        self._ended: dict[str, int] = dict.fromkeys(names, 0)
        self.wrong: list[str] = []
        self.reads = 0

    def write(self, name: str, how: str, size: int) -> None:
        """Replace a file, append to it, or rename another one over it."""
        begun, path = self._begun[name], self._folder / name
        number = len(begun)
        new = f"{name} {number} ".encode() * size
        begun.append(begun[-1] + new if how == "append" else new)
        if how == "rename":
            path.with_name("new").write_bytes(new)
            path.with_name("new").rename(path)
        else:
            with path.open("ab" if how == "append" else "wb", 0) as file:
                assert file.write(new) == len(new)
        self._ended[name] = number

    def read(self, name: str) -> None:
        """Open a file, and read it at once."""
        begun, least = self._begun[name], self._ended[name]
        try:
            file = os.open(self._folder / name, os.O_RDONLY)
        except OSError as error:
            # A streamed file is being written; or it is replaced again and again.
            if error.errno not in (errno.EPERM, errno.ESTALE):
                self.wrong.append(f"{name}: {error}")
            return
        try:
            found = os.pread(file, 1 << 20, 0)
        finally:
            os.close(file)
        self.reads += 1
        written_meanwhile = len(begun) - 1 > least
        if found not in begun[least:] and not (found == b"" and written_meanwhile):
            old = begun.index(found) if found in begun else "none"
            self.wrong.append(f"{name}: version {old} {found[:30]!r} after version {least}")


@pytest.mark.parametrize("kinds", [["replace", "rename"], ["append"]], ids="-".join)
def test_changed_again_and_again(place: Opened, kinds: list[str]) -> None:
    """No write fails; no read is older than the last write before its open, or of two versions."""
    it, drawn = place, random.Random(SEED)
    names = ["file-100", "file-101", "file-102", "file-103"]
    versions = Versions(it.path, names)
    for name in names:
        versions.write(name, "replace", 1)
    before = it.opens()

    def read(drawn: random.Random) -> None:
        for name in drawn.sample(names, len(names)):
            versions.read(name)
        it.read_all()

    with meanwhile(3, read):
        for _ in rounds(50):
            versions.write(drawn.choice(names), drawn.choice(kinds), drawn.randrange(1, 500))
            reads = versions.reads
            eventually(lambda reads=reads: versions.reads > reads)  # type: ignore[misc]
    assert versions.wrong == []
    assert it.opens() - before >= 20
    it.all_are_closed()


def test_replaced_behind_the_mount(store: Store, place: Opened, how: str) -> None:
    """The old content stays, whole, until the mount is told that it has changed."""
    it, name = place, sorted(place.files)[4]
    path, old = it.path / name, it.files[name]
    os.close(it.open(name))
    store.put(f"prepared-{how}/{it.path.name}/{name}", b"new")
    before = it.opens()
    with path.open("rb", buffering=0) as held:
        assert it.opens() == before + 1
        assert path.read_bytes() == old
        done("refresh", path)
        assert path.read_bytes() == b"new"
        assert held.readall() == old
    assert path.read_bytes() == b"new"
    it.all_are_closed()


def test_killed_while_files_are_open(store: Store, folder: Path) -> None:
    """What is open goes on, also after so many opens that the log has got new memory."""
    with directories(store, folder, made(COUNT // 2), how="killed") as (it,):
        names, opened = list(it.files), dict[int, str]()

        def check(every: int) -> None:
            for descriptor, name in list(opened.items())[::every]:
                assert os.pread(descriptor, 1 << 20, 0) == it.files[name]
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

        try:
            for churned in (0, 6000):
                for name in names[len(opened) :][:50]:
                    opened[it.open(name)] = name
                before = it.opens()
                for name in itertools.islice(itertools.cycle(names[:90]), churned):
                    os.close(os.open(it.path / name, os.O_RDONLY))
                assert it.opens() - before > 0 or not churned
                check(2)
                eventually(lambda: it.stats()["status"]["uptime_s"] > keeper.SERVED_S)
                Kept(it.mount).kill()
                check(1)
                assert it.open_files() == len(opened)
                it.look_up()
                it.read_all()
        finally:
            for descriptor in opened:
                os.close(descriptor)
        it.all_are_closed()
        assert "Traceback" not in it.mount.log


@pytest.mark.parametrize("option", ["--no-keep-alive", "--no-channel", "--no-native"])
def test_other_ways(store: Store, folder: Path, option: str) -> None:
    """Files are opened in the lane without a keeper, too, and not without the channel."""
    with directories(store, folder, made(30), option, how="other") as (it,):
        it.read_all()
        it.read_all()
        if option == "--no-channel":
            assert it.opens() == 0
        else:
            it.read_held()
        it.all_are_closed()


def test_unmounted_while_files_are_open(store: Store, folder: Path) -> None:
    """They are read on, and no process is left after they were closed."""
    with directories(store, folder, made(30), how="left") as (it,):
        it.read_held(lambda: subprocess.run(["umount", "-l", it.mount.root], check=True))
        eventually(it.mount.has_ended)


@pytest.mark.parametrize("how", ["streamed", "staged"])
def test_a_storm_beside(flat_store: Store, folder: Path, how: str) -> None:
    """All operations on four names, while other threads read other files: their bytes are right."""
    prefix = f"storm-{how}"
    with directories(flat_store, folder, made(100), how=prefix) as (it,):
        (it.mount.root / "d").mkdir()
        storm = Storm(it.mount.root, EXPECTED if how == "staged" else STREAMED, SEED, examples(40))
        count_cases(THREADS * examples(40))
        before = it.opens()
        with meanwhile(2, lambda _: it.read_all()):
            storm.run()
        assert storm.wrong == []
        assert it.opens() - before > 0
        assert "a bug" not in it.mount.log
        for name in NAMES:
            body = storm.data(random.Random(name))
            (it.mount.root / name).write_bytes(body)
            assert (it.mount.root / name).read_bytes() == body
            assert content(flat_store, f"prepared-{prefix}/{name}") == body
        it.all_are_closed()
