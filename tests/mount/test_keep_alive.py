"""--keep-alive: a mount whose process is killed goes on, and programs notice nothing."""

import contextlib
import errno
import json
import mmap
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mountpoint.mount.kept import keeper
from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy, on_lists, refuse
from tests.mount.mounting import (
    PROGRAM,
    Mount,
    content,
    environment,
    errno_of,
    eventually,
    foreground,
    mounted,
    pending,
    run,
    store_options,
)
from tests.soak import SEED, rounds
from tools.mounting import is_mounted, keepers, mount_processes, workers

pytestmark = pytest.mark.mount

MIB = 1 << 20


class Kept:
    """A mount with a keeper."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.path = mount.path

    @property
    def worker(self) -> int | None:
        """The process that serves, if there is one."""
        return next(iter(workers(self.mount.root)), None)

    @property
    def keeper(self) -> int | None:
        """The keeper, if it is alive."""
        return next(iter(keepers(self.mount.root)), None)

    def kill(self) -> int:
        """Kill the worker; return the one that follows it, when it has been started."""
        died = self.worker
        assert died is not None
        os.kill(died, signal.SIGKILL)
        eventually(lambda: self.worker not in (None, died))
        follower = self.worker
        assert follower is not None
        return follower


@contextlib.contextmanager
def kept(
    store: Store, folder: Path, *options: str, endpoint_url: str | None = None
) -> Iterator[Kept]:
    with mounted(
        store, folder, "--keep-alive", "--debug", *options, endpoint_url=endpoint_url
    ) as it:
        yield Kept(it)


@pytest.fixture(scope="module")
def files(store: Store) -> dict[str, bytes]:
    """Files by name; they are in the store, below keep-alive/."""
    made = {f"file-{size}": random.Random(size).randbytes(size) for size in (10, 300_000, 20 * MIB)}
    store.put_all({f"keep-alive/{name}": data for name, data in made.items()})
    return made


@pytest.fixture(scope="module")
def shared(
    store: Store, tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> Iterator[Kept]:
    """One mount for the tests that leave it as it was."""
    options = ("--allow-delete", "--allow-overwrite", "--allow-rename")
    with kept(store, tmp_path_factory.mktemp("kept"), *options) as it:
        yield it


class Readers:
    """Threads that read the files in all ways, until they are told to end."""

    def __init__(self, folder: Path, files: dict[str, bytes], seed: int) -> None:
        self._folder, self._files = folder, files
        self._ending = threading.Event()
        self.wrong: list[str] = []
        self.reads = 0
        self._pool = ThreadPoolExecutor(4)
        self._futures = [self._pool.submit(self._run, random.Random(seed + n)) for n in range(4)]

    def end(self) -> None:
        self._ending.set()
        for future in self._futures:
            future.result(60)
        self._pool.shutdown()

    def _run(self, drawn: random.Random) -> None:
        while not self._ending.is_set():
            name = drawn.choice(list(self._files))
            direct = os.O_DIRECT if drawn.random() < 0.5 else 0
            file = os.open(self._folder / name, os.O_RDONLY | direct)
            try:
                self._read(file, name, drawn)
            finally:
                os.close(file)
            assert set(os.listdir(self._folder)) >= set(self._files)
            assert os.stat(self._folder / name).st_size == len(self._files[name])

    def _read(self, file: int, name: str, drawn: random.Random) -> None:
        step = drawn.choice([4096, 128 << 10, MIB])
        offset = drawn.randrange(len(self._files[name])) & ~4095
        for _ in range(20):
            data = os.pread(file, step, offset)
            if data != self._files[name][offset : offset + step]:
                self.wrong.append(f"{name} at {offset}: {len(data)} other bytes")
            self.reads += 1
            random_next = drawn.randrange(len(self._files[name])) & ~4095
            offset = drawn.choice([offset + step, random_next])


def test_readers_notice_nothing(shared: Kept, files: dict[str, bytes]) -> None:
    """Workers are killed at random moments: no read, open, stat or listing fails."""
    readers = Readers(shared.path / "keep-alive", files, SEED)
    drawn = random.Random(SEED)
    try:
        for _ in rounds(4):
            shared.kill()
            before = readers.reads
            eventually(lambda before=before: readers.reads > before)  # type: ignore[misc]
            # Otherwise its death would count as one at its start.
            time.sleep(keeper.SERVED_S + drawn.random() / 2)
    finally:
        readers.end()
    assert readers.wrong == []
    # Also those that were opened for a request that the kernel has sent again.
    eventually(lambda: status(shared)["open_files"] == 0)
    assert "Traceback" not in shared.mount.log
    assert "died; this one goes on" in shared.mount.log


def test_what_is_open_stays_open(shared: Kept, files: dict[str, bytes]) -> None:
    """Files, mappings, listings and working directories of before go on."""
    folder = shared.path / "keep-alive"
    data = files[f"file-{20 * MIB}"]
    with (folder / f"file-{20 * MIB}").open("rb", buffering=0) as file:
        assert file.read(5000) == data[:5000]
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            shared.kill()
            program = subprocess.run(
                ["cat", "file-10"],
                cwd=f"/proc/self/fd/{directory}",
                pass_fds=[directory],
                capture_output=True,
                check=True,
            )
            assert program.stdout == files["file-10"]
            assert mapping[15 * MIB : 15 * MIB + 100] == data[15 * MIB : 15 * MIB + 100]
            assert file.read(MIB) == data[5000 : 5000 + MIB]
            assert os.fstat(file.fileno()).st_size == len(data)
            assert "file-10" in os.listdir(directory)
            shared.kill()  # what was taken over once is taken over again
            assert os.pread(file.fileno(), MIB, 9 * MIB) == data[9 * MIB : 10 * MIB]
            assert "file-10" in os.listdir(directory)
        finally:
            os.close(directory)
            mapping.close()


def test_a_listing_goes_on(store: Store, shared: Kept) -> None:
    """A directory that is read while the worker dies has each name once."""
    names = {f"name-{number:05}" for number in range(1200)}
    store.put_all({f"keep-alive-names/{name}": b"" for name in names})
    listed = []
    with os.scandir(shared.path / "keep-alive-names") as entries:
        listed += [next(entries).name for _ in range(100)]
        shared.kill()
        listed += [entry.name for entry in entries]
    assert sorted(listed) == sorted(names)


def test_created_directories_stay(shared: Kept, own: str) -> None:
    """Directories that no object is in are still there, also below a renamed one."""
    (shared.path / own / "a" / "b").mkdir(parents=True)
    (shared.path / own / "gone").mkdir()
    (shared.path / own / "gone").rmdir()
    (shared.path / own / "a").rename(shared.path / own / "z")
    shared.kill()
    assert os.listdir(shared.path / own) == ["z"]
    assert os.listdir(shared.path / own / "z") == ["b"]
    (shared.path / own / "z" / "b").rmdir()


def test_an_open_file_stays_its_version(store: Store, shared: Kept) -> None:
    """If the object was replaced, bytes that are not here fail; those of another never come."""
    old, new = os.urandom(4 * MIB), os.urandom(4 * MIB)
    store.put("keep-alive-version", old)
    with (shared.path / "keep-alive-version").open("rb", buffering=0) as file:
        assert file.read(1000) == old[:1000]
        store.put("keep-alive-version", new)
        shared.kill()
        assert os.pread(file.fileno(), 100, 0) == old[:100]  # the kernel has these
        assert errno_of(lambda: os.pread(file.fileno(), 100, 3 * MIB)) == errno.ESTALE
    assert (shared.path / "keep-alive-version").read_bytes() == new


def test_writers_learn_of_it(store: Store, shared: Kept, own: str) -> None:
    """A file that is being written fails at the next call, leaves nothing, and can be repeated."""
    path = shared.path / f"{own}-file"
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(file, bytes(40 * MIB))
    eventually(lambda: bool(pending(store, own)))
    shared.kill()
    assert errno_of(lambda: os.write(file, b"more")) == errno.EIO
    assert errno_of(lambda: os.fsync(file)) == errno.EIO
    assert errno_of(lambda: os.close(file)) == errno.EIO
    eventually(lambda: not pending(store, own))
    assert not path.exists()
    path.write_bytes(b"again")
    assert content(store, f"{own}-file") == b"again"
    assert "was killed while the file was written" in shared.mount.log


def test_what_was_written_stays(store: Store, shared: Kept, own: str) -> None:
    """A file that was closed before is there, under the same number."""
    path = shared.path / f"{own}-file"
    path.write_bytes(b"content")
    number = path.stat().st_ino
    shared.kill()
    assert path.read_bytes() == b"content"
    assert content(store, f"{own}-file") == b"content"
    with path.open("rb") as file:
        assert os.fstat(file.fileno()).st_ino == path.stat().st_ino
    assert number > 1


def stalled(wanted: str, method: str, reached: threading.Event) -> "object":
    """Return a fault that stops the first such request for ever, and sets `reached`."""
    left = [1]

    def fault(exchange: Exchange) -> None:
        if exchange.method == method and wanted in exchange.target and left:
            left.pop()
            exchange.delay_s = 60
            reached.set()

    return fault


@pytest.fixture
def proxy(store: Store) -> Iterator[FaultyProxy]:
    with FaultyProxy(store.endpoint_url) as it:
        yield it


@pytest.mark.parametrize("resends", [True, False], ids=["repeated", "older-kernel"])
def test_requests_in_progress(
    store: Store, folder: Path, files: dict[str, bytes], proxy: FaultyProxy, *, resends: bool
) -> None:
    """A read that the dead worker had taken is repeated; where the kernel cannot, it fails once."""
    name = f"file-{20 * MIB}"
    with (
        kept(store, folder, "--prefix", "keep-alive/", endpoint_url=proxy.url) as it,
        ThreadPoolExecutor(1) as pool,
    ):
        if not resends:
            forget_resending(it.keeper)
        file = os.open(it.path / name, os.O_RDONLY | os.O_DIRECT)
        try:
            reached = threading.Event()
            proxy.faults.append(stalled(name, "GET", reached))  # type: ignore[arg-type]
            read = pool.submit(lambda: os.pread(file, 4096, 15 * MIB))
            assert reached.wait(20)
            it.kill()
            if resends:
                assert read.result(30) == files[name][15 * MIB : 15 * MIB + 4096]
            else:
                with pytest.raises(OSError, match="Input/output error"):
                    read.result(30)
            assert os.pread(file, 4096, 15 * MIB) == files[name][15 * MIB : 15 * MIB + 4096]
        finally:
            os.close(file)


def forget_resending(keeper: int | None) -> None:
    """Make the kept INIT that of a kernel which cannot send requests again."""
    init_ext = 1 << 30
    for link in Path(f"/proc/{keeper}/fd").iterdir():
        if "mount-s3 requests" in os.readlink(link):
            with link.open("r+b", buffering=0) as memory:
                head = bytearray(memory.read(256))
                at = 8 + 40 + 12  # before INIT, its header, and its fields before the flags
                flags = int.from_bytes(head[at : at + 4], "little")
                assert flags & init_ext
                memory.seek(at)
                memory.write((flags & ~init_ext).to_bytes(4, "little"))
            return
    raise AssertionError("the keeper does not have it")


def test_a_deletion_in_progress_is_not_repeated(
    store: Store, folder: Path, proxy: FaultyProxy
) -> None:
    """It may have been carried out, and would then fail as if the file had not been there."""
    store.put("keep-alive-deletion/file", b"content")
    options = ("--prefix", "keep-alive-deletion/", "--allow-delete")
    with (
        kept(store, folder, *options, endpoint_url=proxy.url) as it,
        ThreadPoolExecutor(1) as pool,
    ):
        reached = threading.Event()
        proxy.faults.append(stalled("file", "DELETE", reached))  # type: ignore[arg-type]
        deletion = pool.submit(lambda: errno_of(lambda: os.unlink(it.path / "file")))
        assert reached.wait(20)
        it.kill()
        assert deletion.result(30) == errno.EIO
        assert "operation=unlink path=/file errno=EIO" in it.mount.log


class Outage:
    """A proxy in front of the store, which can be out of reach for a while."""

    def __init__(self, store: Store, how: str) -> None:
        self._store, self._how = store, how
        self._over = threading.Event()
        self._proxy = FaultyProxy(store.endpoint_url)
        self._proxy.__enter__()
        self.url = self._proxy.url

    def begin(self) -> None:
        """Refuse connections, or answer no request."""
        if self._how == "refuses":
            self._proxy.__exit__(None, None, None)
        else:
            self._proxy.before.append(lambda exchange: self._wait(exchange))
        self._proxy.cut_all()

    def _wait(self, exchange: Exchange) -> None:
        self._over.wait(100)
        exchange.taken = 0  # who sent it has given it up

    def end(self) -> None:
        """Be there again, under the same address."""
        self._over.set()
        if self._how == "refuses":
            self._proxy = FaultyProxy(self._store.endpoint_url, port=self._proxy.port)
            self._proxy.__enter__()
        else:
            self._proxy.before.clear()

    def close(self) -> None:
        """End the proxy."""
        self._over.set()
        self._proxy.__exit__(None, None, None)


@pytest.mark.parametrize("how", ["refuses", "silent"])
def test_s3_is_out_of_reach(store: Store, folder: Path, files: dict[str, bytes], how: str) -> None:
    """The mount goes on: what needs S3 fails in time, all else works, and all when it is back."""
    outage, data = Outage(store, how), files[f"file-{20 * MIB}"]
    (folder / "staging").mkdir()
    options = ["--prefix", "keep-alive/", "--read-timeout", "4", "--allow-overwrite"]
    options += ["--staged-writes", str(folder / "staging")]
    try:
        with (
            kept(store, folder, *options, endpoint_url=outage.url) as it,
            (it.path / f"file-{20 * MIB}").open("rb", buffering=0) as file,
            (it.path / f"new-{how}").open("w+b", buffering=0) as staged,
            ThreadPoolExecutor(1) as pool,
        ):
            assert file.read(4096) == data[:4096]
            staged.write(b"before, ")
            outage.begin()
            for restarts in (1, 2):
                it.kill()
                eventually(lambda n=restarts: status(it)["restarts"] == n)  # type: ignore[misc]
                looked = pool.submit(errno_of, lambda: os.stat(it.path / "file-10"))
                assert looked.result(30) == errno.EIO
                read = pool.submit(errno_of, lambda: os.pread(file.fileno(), 4096, 15 * MIB))
                assert read.result(30) == errno.EIO
                assert os.fstat(file.fileno()).st_size == len(data)
                staged.write(b"meanwhile, ")
            assert "mount-s3 died" not in it.mount.log
            outage.end()
            eventually(lambda: errno_of(lambda: os.stat(it.path / "file-10")) is None)
            assert os.pread(file.fileno(), 4096, 15 * MIB) == data[15 * MIB : 15 * MIB + 4096]
            assert (it.path / "file-300000").read_bytes() == files["file-300000"]
            staged.write(b"after")
            os.fsync(staged.fileno())
            expected = b"before, meanwhile, meanwhile, after"
            assert content(store, f"keep-alive/new-{how}") == expected
    finally:
        outage.close()
        store.delete(f"keep-alive/new-{how}")


def test_there_are_no_credentials(store: Store, folder: Path, files: dict[str, bytes]) -> None:
    """If their source does not answer just then, operations fail until it does."""
    keys, config = folder / "keys", folder / "config"
    names = {"AWS_ACCESS_KEY_ID": "AccessKeyId", "AWS_SECRET_ACCESS_KEY": "SecretAccessKey"}
    found = {names[name]: value for name, value in store.environment.items() if name in names}
    keys.write_text(json.dumps({"Version": 1} | found))
    config.write_text(f"[profile file]\ncredential_process = cat {keys}\n")
    environ = {"AWS_CONFIG_FILE": str(config), "AWS_ENDPOINT_URL_S3": store.endpoint_url}
    environ |= {"AWS_REGION": "us-east-1"}
    options = ("--prefix", "keep-alive/", "--keep-alive", "--force-path-style")
    with mounted(store, folder, *options, "--profile", "file", environ=environ) as mount:
        it, path = Kept(mount), mount.path / "file-300000"
        keys.rename(folder / "away")
        it.kill()
        assert errno_of(lambda: os.stat(path)) == errno.EACCES
        (folder / "away").rename(keys)
        eventually(lambda: errno_of(lambda: os.stat(path)) is None, within_s=60)
        assert path.read_bytes() == files["file-300000"]


@pytest.mark.parametrize("end", ["keeper", "worker", "fusermount -u", "umount -f"])
def test_the_end(store: Store, folder: Path, end: str) -> None:
    """Each way to unmount ends both processes."""
    with kept(store, folder) as it:
        it.kill()
        if end in ("keeper", "worker"):
            pid = it.keeper if end == "keeper" else it.worker
            assert pid is not None
            os.kill(pid, signal.SIGTERM)
        else:
            subprocess.run([*end.split(), it.path], check=True)
        eventually(it.mount.has_ended)
        assert not it.mount.is_mounted()


def test_a_mount_without_its_keeper(store: Store, folder: Path, files: dict[str, bytes]) -> None:
    """If the keeper is killed, the mount works as one without a keeper."""
    with kept(store, folder, "--prefix", "keep-alive/") as it:
        keeper = it.keeper
        assert keeper is not None
        os.kill(keeper, signal.SIGKILL)
        eventually(lambda: it.keeper is None)
        assert (it.path / "file-300000").read_bytes() == files["file-300000"]
        worker = it.worker
        assert worker is not None
        os.kill(worker, signal.SIGTERM)
        eventually(it.mount.has_ended)
        assert not it.mount.is_mounted()


#: A module that the interpreter imports first: it kills the first process that says that its mount
#: is ready, which is before the kernel has the answer to INIT.
DIES_WHEN_READY = """
import os, signal
from mountpoint.mount.kept.link import Link

def ready(self, tell=Link.ready):
    tell(self)
    try:
        os.close(os.open({mark!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)

Link.ready = ready
"""


def test_killed_before_the_kernel_has_an_answer(
    store: Store, folder: Path, files: dict[str, bytes]
) -> None:
    """The next process answers the kernel's INIT, and the mount works."""
    modules, mark = folder / "modules", folder / "killed"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(DIES_WHEN_READY.format(mark=str(mark)))
    environ = store.environment | {"AWS_ENDPOINT_URL_S3": store.endpoint_url}
    environ |= {"AWS_REGION": "us-east-1", "PYTHONPATH": str(modules)}
    options = ("--prefix", "keep-alive/", "--keep-alive", "--force-path-style")
    with mounted(store, folder, *options, environ=environ) as mount:
        assert mark.exists()
        assert (mount.path / "file-300000").read_bytes() == files["file-300000"]


def test_a_keeper_in_the_foreground(store: Store, folder: Path, files: dict[str, bytes]) -> None:
    """It is the process that was started, notifies the manager, and ends with exit code 0."""
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)
        options = ("--prefix", "keep-alive/")
        environ = {"NOTIFY_SOCKET": str(address)}
        with foreground(store, folder, *options, environ=environ) as (program, path):
            assert manager.recv(4096).startswith(b"READY=1\nSTATUS=")
            serving = workers(path)
            assert len(serving) == 1
            os.kill(serving[0], signal.SIGKILL)
            assert (path / "file-300000").read_bytes() == files["file-300000"]
            program.send_signal(signal.SIGINT)
            assert program.wait(timeout=30) == 0
            assert program.stdout is not None
            assert program.stdout.read().count("is mounted at") == 1
            assert not is_mounted(path)


def test_a_supervisor_in_the_foreground(store: Store, folder: Path) -> None:
    """What was started is killed: nobody serves any more, and it can be started again."""
    with foreground(store, folder) as (program, path):
        program.kill()
        program.wait()
        eventually(lambda: mount_processes(path) == [])
        # The kernel says so to the first access after the death.
        assert errno_of(lambda: os.listdir(path)) in (errno.ENOTCONN, errno.ECONNABORTED)
        done = run(store.bucket, path, *store_options(store), env=store.environment)
        assert done.returncode == 0, done.stderr
        assert "removed the dead mount" in done.stderr
        os.listdir(path)


@pytest.mark.parametrize("where", [[], ["--foreground"]], ids=["background", "foreground"])
@pytest.mark.parametrize("reason", ["no bucket", "no library"])
def test_no_mount(store: Store, folder: Path, where: list[str], reason: str) -> None:
    """What prevents the mount is said as without a keeper, once, with exit code 1."""
    bucket, environ = "no-such-bucket-here", environment(store.environment)
    if reason == "no library":
        bucket = store.bucket
        environ["PYTHONPATH"] = str(folder)
        (folder / "llfuse.py").write_text("raise ImportError('it is not there')")
    (folder / "mnt").mkdir()
    said = []
    for keep in (["--no-keep-alive"], []):
        done = subprocess.run(
            [PROGRAM, *keep, *where, *store_options(store), bucket, folder / "mnt"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        said.append([line for line in done.stderr.splitlines() if line.startswith("Error")])
    assert len(said[0]) == 1
    assert said[0] == said[1]
    assert mount_processes(folder / "mnt") == []


def test_status(shared: Kept) -> None:
    """It says that the mount is restarted, and how often it was."""
    ctl = PROGRAM.with_name("mount-s3ctl")
    shared.kill()
    os.stat(shared.path / "keep-alive")  # it serves
    done = subprocess.run([ctl, "status", shared.path], capture_output=True, text=True, check=True)
    assert ", restarted " in done.stdout


def ctl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [PROGRAM.with_name("mount-s3ctl"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def status(kept: Kept) -> dict[str, int]:
    """What mount-s3ctl says of the mount."""
    found: dict[str, int] = json.loads(ctl("status", "--json", kept.path).stdout)[0]
    return found


def test_an_upgrade(store: Store, shared: Kept, files: dict[str, bytes], own: str) -> None:
    """The process is replaced while programs read and write: nothing fails, nothing is lost."""
    before = shared.worker
    restarts = status(shared)["restarts"]
    readers = Readers(shared.path / "keep-alive", files, SEED)
    stopping, written = threading.Event(), list[str]()

    def write() -> None:
        while not stopping.is_set():
            name = f"{own}-{len(written)}"
            (shared.path / name).write_bytes(name.encode())
            written.append(name)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            eventually(lambda: len(written) > 3)
            done = ctl("upgrade", shared.path)
            so_far = len(written)
            eventually(lambda: len(written) > so_far + 3)
        finally:
            stopping.set()
            readers.end()
        writer.result(30)
    assert done.returncode == 0, done.stderr
    assert f"process {shared.worker}" in done.stdout
    assert shared.worker != before
    assert readers.wrong == []
    for name in written:
        assert content(store, name) == name.encode()
    after = status(shared)
    assert (after["pid"], after["restarts"]) == (shared.worker, restarts)
    assert "this process has taken the mount over" in shared.mount.log


def test_an_upgrade_waits_for_writers(store: Store, shared: Kept, own: str) -> None:
    """It does not begin before the file is closed, and gives up if that takes too long."""
    before = shared.worker
    with (shared.path / own).open("wb") as file:
        file.write(b"content")
        file.flush()
        done = ctl("upgrade", "--timeout", "0", shared.path)
        assert done.returncode == 1
        assert f"is still being written to: /{own}" in done.stderr
        assert shared.worker == before
    assert content(store, own) == b"content"
    assert ctl("upgrade", shared.path).returncode == 0


def test_an_upgrade_that_cannot_mount(
    store: Store, folder: Path, files: dict[str, bytes], proxy: FaultyProxy
) -> None:
    """Then everything is as before, and the reason is said."""
    with kept(store, folder, "--prefix", "keep-alive/", endpoint_url=proxy.url) as it:
        before = it.worker
        proxy.faults.append(on_lists(refuse(403, "AccessDenied")))
        done = ctl("upgrade", it.path)
        assert done.returncode == 1
        assert "the other version cannot mount: access to bucket" in done.stderr
        assert it.worker == before
        proxy.faults.clear()
        assert (it.path / "file-300000").read_bytes() == files["file-300000"]
        assert ctl("upgrade", it.path).returncode == 0
        assert (it.path / "file-10").read_bytes() == files["file-10"]


def test_an_upgrade_without_a_keeper(store: Store, folder: Path) -> None:
    """It is refused."""
    with mounted(store, folder, "--no-keep-alive") as it:
        done = ctl("upgrade", it.path)
    assert done.returncode == 1
    assert "without --no-keep-alive" in done.stderr


@pytest.mark.parametrize("dies", ["worker", "follower"])
def test_a_death_during_an_upgrade(
    store: Store, folder: Path, files: dict[str, bytes], proxy: FaultyProxy, dies: str
) -> None:
    """If one of the two processes is killed, the other one serves."""
    with kept(store, folder, "--prefix", "keep-alive/", endpoint_url=proxy.url) as it:
        before = it.worker
        reached = threading.Event()
        proxy.faults.append(stalled("list-type", "GET", reached))  # type: ignore[arg-type]
        with ThreadPoolExecutor(1) as pool:
            upgrade = pool.submit(ctl, "upgrade", it.path)
            assert reached.wait(20)
            others = {it.keeper, before}
            (follower,) = set(mount_processes(it.path)) - others
            os.kill(before if dies == "worker" and before else follower, signal.SIGKILL)
            assert (it.path / "file-300000").read_bytes() == files["file-300000"]
            assert upgrade.result(100).returncode == (0 if dies == "worker" else 1)
        eventually(lambda: len(mount_processes(it.path)) == 2)
        assert (it.worker == before) == (dies == "follower")
