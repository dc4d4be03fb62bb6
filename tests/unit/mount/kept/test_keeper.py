"""The keeper, with workers that do as the test says, and a pipe in place of /dev/fuse.

The writing end of a pipe reports POLLERR once nobody can read it, as /dev/fuse does once it is not
mounted any more.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mountpoint.mount.kept import keeper
from tests.mount.mounting import eventually

#: A worker: it writes down what it was given, and then does what the test says.
WORKER = """
import json, os, select, signal, socket, sys
settings = json.loads(sys.argv[1])
link = socket.socket(fileno=settings["link"])
first = not settings["takes_over"]
STARTED
link.send(b"P")
message, kept, _, _ = socket.recv_fds(link, 4096, 3)
assert message[:1] == b"G"
device = 0 if first else kept[0]
settings |= json.loads(message[1:])
facts = {"pid": os.getpid(), "config": os.pread(settings["config"], 100, 0).decode()}
facts["kept"] = len(kept)
with open(LOG, "a") as log:
    log.write(json.dumps(settings | facts) + "\\n")

def ready():
    socket.send_fds(link, [b"R"], [device] * 3)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def serve(code):
    poll = select.poll()
    poll.register(device, 0)
    poll.poll()
    os._exit(code)
"""

#: The keeper with short pauses, and with a first worker, which `launch` starts otherwise; it notes
#: when it unmounts.
KEEPER = """
import json, signal, sys
for number in (1, 2, 15):  # nohup ignores the first
    signal.signal(number, signal.SIG_DFL)
sys.path.insert(0, FOLDER)
import keeper
keeper.FIRST_PAUSE_S = 0.001
keeper.LONGEST_PAUSE_S = PAUSE_S
keeper.SERVED_S = SERVED_S
keeper.UNMOUNT = ((sys.executable, "-c", f"open({LOG!r} + '.unmounted', 'w')"),)
settings = json.loads(sys.argv[1])
first = keeper.Worker.start(
    settings["worker"],
    settings["config"],
    takes_over=bool(settings["stored"]),
    unserved=bool(settings["stored"]),
    background=settings["status"] is not None,
)
settings["first"] = {"pid": first.pid, "socket": first.socket.detach()}
sys.exit(keeper.Keeper(settings).run())
"""


class World:
    """A keeper in the background, as a child of this process, and its workers."""

    def __init__(
        self,
        folder: Path,
        body: str,
        *,
        served_s: float = 0.0,
        pause_s: float = 0.001,
        started: str = "pass",
        notify: str = "",
        stored: dict[str, int] | None = None,
    ) -> None:
        worker = WORKER.replace("STARTED", started)
        self.log = folder / "log"
        self._mounted, device = os.pipe()
        self.status, status = os.pipe()
        config = os.memfd_create("config", 0)
        os.write(config, b"the config")
        #: What it leaves to the next keeper.
        self.state = os.memfd_create("state", 0) if stored is None else stored["state-1"]
        if stored is None:
            os.write(self.state, b'{"terms": {"BUCKET": "a"}}')
        settings = {
            "worker": [sys.executable, "-c", f"LOG = {str(self.log)!r}\n{worker}\n{body}", "/mnt"],
            "config": config,
            "directory": "/mnt",
            "status": None if notify else status,
            "done": "done" if notify else "",
            "state": self.state,
            "stored": stored or {},
            "device": None,
        }
        names = {"LOG": str(self.log), "SERVED_S": served_s, "PAUSE_S": pause_s}
        names["FOLDER"] = str(Path(keeper.__file__).parent)
        constants = "\n".join(f"{name} = {value!r}" for name, value in names.items())
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", f"{constants}\n{KEEPER}", json.dumps(settings)],
            pass_fds=[config, status, self.state, *(stored or {}).values()],
            stdin=device,
            env=os.environ | {"NOTIFY_SOCKET": notify},
        )
        for each in (status, config, device):
            os.close(each)

    def workers(self) -> list[dict[str, Any]]:
        """What the workers were given."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def has_unmounted(self) -> bool:
        """Whether the keeper itself has unmounted."""
        return Path(f"{self.log}.unmounted").exists()

    def unmount(self) -> None:
        """Unmount, as another process would."""
        os.close(self._mounted)

    def end(self) -> int:
        """Wait for the keeper; return its exit code."""
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.status)
            os.close(self.state)


def test_the_next_worker_goes_on(tmp_path: Path) -> None:
    """It gets the config, what the one before has sent, and that one's number."""
    world = World(tmp_path, "ready(); die() if settings['restarts'] < 2 else serve(7)")
    assert os.read(world.status, 10) == b"R"
    eventually(lambda: len(world.workers()) == 3)
    world.unmount()
    assert world.end() == 7
    first, second, third = world.workers()
    assert [each["kept"] for each in (first, second, third)] == [0, 3, 3]
    assert [each["restarts"] for each in (first, second, third)] == [0, 1, 2]
    assert [each["died"] for each in (first, second, third)] == [0, first["pid"], second["pid"]]
    assert {each["config"] for each in (first, second, third)} == {"the config"}
    assert [each["unserved"] for each in (first, second, third)] == [False, True, True]
    assert not world.has_unmounted()


def test_another_log(tmp_path: Path) -> None:
    """A log that the worker has begun anew takes the place of the one before."""
    body = """
if first:
    ready()
    socket.send_fds(link, [b"L"], [os.memfd_create("new")])
    die()
if "new" not in os.readlink(f"/proc/self/fd/{kept[2]}"):
    os._exit(1)
ready()
serve(0)
"""
    world = World(tmp_path, body)
    eventually(lambda: len(world.workers()) == 2)
    world.unmount()
    assert world.end() == 0


def test_a_mount_that_never_was(tmp_path: Path) -> None:
    """The caller gets the message; there is no second try."""
    world = World(tmp_path, "link.send(b'Fno such bucket\\nuse another'); os._exit(1)")
    assert os.read(world.status, 100) == b"Eno such bucket\nuse another"
    assert world.end() == 1
    assert len(world.workers()) == 1


def test_a_first_worker_that_dies(tmp_path: Path) -> None:
    """The caller gets no message, and there is no second try."""
    world = World(tmp_path, "die()")
    assert os.read(world.status, 100) == b""
    assert world.end() == 128 + signal.SIGKILL
    assert len(world.workers()) == 1


def test_it_gives_up(tmp_path: Path) -> None:
    """Workers that always die at their start are not started for ever."""
    world = World(tmp_path, "ready()\ndie()", served_s=60)
    assert world.end() == 1
    assert len(world.workers()) == keeper.MAX_FAILURES + 1
    assert world.has_unmounted()


def test_failures_count_in_a_row(tmp_path: Path) -> None:
    """A worker that has served for a while ends the row."""
    body = f"ready(); die() if settings['restarts'] < {keeper.MAX_FAILURES + 5} else serve(0)"
    world = World(tmp_path, body)
    eventually(lambda: len(world.workers()) == keeper.MAX_FAILURES + 6)
    world.unmount()
    assert world.end() == 0
    assert not world.has_unmounted()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_the_workers(tmp_path: Path, number: signal.Signals) -> None:
    """The worker ends the mount, and its exit code is the keeper's."""
    body = """
signal.pthread_sigmask(signal.SIG_BLOCK, keepers := [1, 2, 15])
ready()
os._exit(20 + signal.sigwait(keepers))
"""
    world = World(tmp_path, body)
    assert os.read(world.status, 10) == b"R"
    world.unmount()
    world.process.send_signal(number)
    assert world.end() == 20 + number


def test_a_worker_that_ends_in_order(tmp_path: Path) -> None:
    """It has unmounted, so the mount ends with the keeper, even if files are open there."""
    world = World(tmp_path, "ready(); os._exit(0)")
    assert world.end() == 0
    assert len(world.workers()) == 1
    assert not world.has_unmounted()


def test_a_signal_between_workers(tmp_path: Path) -> None:
    """Then the keeper itself unmounts, at once."""
    world = World(tmp_path, "ready()\ndie()", served_s=60, pause_s=600)
    # The pauses double: the one after so many workers lasts for minutes.
    eventually(lambda: len(world.workers()) >= 8)
    world.process.send_signal(signal.SIGTERM)
    assert world.end() == 0
    assert world.has_unmounted()


def test_a_worker_that_is_told_to_end_at_its_start(tmp_path: Path) -> None:
    """It does not unmount, so the keeper does."""
    world = World(tmp_path, "ready()\ndie() if first else os.kill(os.getpid(), signal.SIGTERM)")
    assert world.end() == 0
    assert len(world.workers()) == 2
    assert world.has_unmounted()


def test_the_caller_is_gone(tmp_path: Path) -> None:
    """If nobody waits for the mount any more, it ends."""
    body = """
signal.pthread_sigmask(signal.SIG_BLOCK, [15])
ready()
os._exit(20 + signal.sigwait([15]))
"""
    world = World(tmp_path, body)
    status, world.status = world.status, os.open(os.devnull, os.O_RDONLY)
    os.close(status)
    world.unmount()
    assert world.end() == 20 + signal.SIGTERM


#: The first worker upgrades at once, and the next one serves.
UPGRADES = """
if settings["died"] == 0:
    ready()
    link.send(b"U")
    answer = link.recv(100)
    ANSWERED
ready()
serve(7)
"""


def test_an_upgrade(tmp_path: Path) -> None:
    """The first worker is killed when the next one is prepared; that is no restart."""
    body = UPGRADES.replace("ANSWERED", "assert answer == b'P'; link.send(b'H'); signal.pause()")
    world = World(tmp_path, body)
    eventually(lambda: len(world.workers()) == 2)
    world.unmount()
    assert world.end() == 7
    first, second = world.workers()
    assert (second["died"], second["upgraded"], second["restarts"]) == (first["pid"], True, 0)
    assert not second["unserved"]  # it is to reach S3 first


@pytest.mark.parametrize(
    ("started", "answer"),
    [
        ("first or [link.send(b'Fno right'), os._exit(1)]", b"Fno right"),
        ("first or os._exit(1)", b"Fit has ended; its log may say why"),
    ],
)
def test_an_upgrade_that_fails(tmp_path: Path, started: str, answer: bytes) -> None:
    """The first worker learns why, and goes on."""
    body = UPGRADES.replace("ANSWERED", f"os._exit(8) if answer != {answer!r} else serve(9)")
    world = World(tmp_path, body, started=started)
    eventually(lambda: len(world.workers()) == 1)
    world.unmount()
    assert world.end() == 9


def test_an_upgrade_that_is_cancelled(tmp_path: Path) -> None:
    """The prepared worker is ended; the next upgrade prepares another one."""
    again = (
        "link.send(b'C'); link.send(b'U'); assert link.recv(9) == b'P'; link.send(b'H'); serve(9)"
    )
    world = World(tmp_path, UPGRADES.replace("ANSWERED", again.replace("; ", "\n    ")))
    eventually(lambda: len(world.workers()) == 2)
    world.unmount()
    assert world.end() == 7


def test_a_death_after_the_preparation(tmp_path: Path) -> None:
    """If the first worker dies then, the prepared one serves."""
    world = World(tmp_path, UPGRADES.replace("ANSWERED", "die()"))
    eventually(lambda: len(world.workers()) == 2)
    world.unmount()
    assert world.end() == 7


def test_a_death_before_a_message_is_read(tmp_path: Path) -> None:
    """A worker that dies before it knows that it is to serve is followed by another one."""
    started = """
if not first and not os.path.exists(LOG + ".died"):
    open(LOG + ".died", "w").close()
    link.send(b"P")
    select.select([link], [], [])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    world = World(tmp_path, "ready(); die() if first else serve(7)", started=started)
    eventually(lambda: len(world.workers()) == 2)
    world.unmount()
    assert world.end() == 7
    assert [each["restarts"] for each in world.workers()] == [0, 2]


class Manager:
    """A service manager, which notes what it is told."""

    def __init__(self, address: Path) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)

    def heard(self, wait_s: float = 20.0) -> tuple[str, list[int]]:
        """The next message, with its descriptors."""
        self._socket.settimeout(wait_s)
        data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 4)
        return data.decode().replace("\n", " "), descriptors

    def has_heard_all(self) -> bool:
        """Whether there is no other message."""
        try:
            self.heard(0.0)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def content(descriptor: int) -> bytes:
    return os.pread(descriptor, 1000, 0)


def test_the_service_manager_keeps_files(manager: Manager) -> None:
    """A file that takes another one's place is there before that one is gone."""
    files = {name: os.memfd_create(name) for name in ("log", "state", "other")}
    for name, file in files.items():
        os.write(file, name.encode())
    told = keeper.ServiceManager(manager.address, {})
    told.keep({"log": files["log"], "state": files["state"]})
    for name in ("log", "state"):
        said, (file,) = manager.heard()
        assert (said, content(file)) == (f"FDSTORE=1 FDNAME={name}-1", name.encode())
        os.close(file)
    told.keep({"log": files["other"], "state": files["state"]})
    said, (file,) = manager.heard()
    assert (said, content(file)) == ("FDSTORE=1 FDNAME=log-2", b"other")
    os.close(file)
    assert manager.heard() == ("FDSTOREREMOVE=1 FDNAME=log-1", [])
    told = keeper.ServiceManager(manager.address, {"log-2": files["other"]})
    told.keep({"log": files["other"]})  # it has this one
    told.drop_all()
    assert manager.heard() == ("FDSTOREREMOVE=1 FDNAME=log-2", [])
    assert manager.has_heard_all()
    for file in files.values():
        os.close(file)


def test_a_service_manager_that_is_gone(tmp_path: Path) -> None:
    """The mount goes on without it."""
    keeper.ServiceManager(str(tmp_path / "nobody"), {}).keep({"log": 0})
    keeper.ServiceManager("", {}).tell("READY=1")


#: Serves, and hands the mount over when it is told to.
LEAVES = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG, 15])
ready()
number = signal.sigwait([signal.SIGURG, 15])
if number == 15:
    serve(7)
link.send(b"H")
signal.pause()
"""


def test_a_restart_of_the_service(tmp_path: Path, manager: Manager) -> None:
    """The mount is left to the service manager, and the next keeper goes on with it."""
    world = World(tmp_path, LEAVES, notify=manager.address)
    assert manager.heard() == ("READY=1 STATUS=done", [])
    stored = {}
    for kind in ("device", "requests", "log", "state"):
        said, (file,) = manager.heard()
        assert said == f"FDSTORE=1 FDNAME={kind}-1"
        stored[f"{kind}-1"] = file
    world.process.send_signal(signal.SIGURG)
    world.process.send_signal(signal.SIGTERM)
    assert world.end() == 0
    assert not world.has_unmounted()
    assert manager.has_heard_all()
    first = world.workers()[0]["pid"]
    left = json.loads(content(stored["state-1"]))
    assert left == {"terms": {"BUCKET": "a"}, "restarts": 0, "died": first, "upgraded": True}

    again = tmp_path / "again"
    again.mkdir()
    following = World(again, LEAVES, notify=manager.address, stored=stored)
    assert manager.heard() == ("READY=1 STATUS=done", [])
    (worker,) = following.workers()
    assert (worker["takes_over"], worker["kept"]) == (True, 3)
    assert (worker["died"], worker["upgraded"], worker["restarts"]) == (first, True, 0)
    following.process.send_signal(signal.SIGTERM)
    for kind in ("device", "requests", "log", "state"):
        assert manager.heard() == (f"FDSTOREREMOVE=1 FDNAME={kind}-1", [])
    world.unmount()
    assert following.end() == 7
    following.unmount()
    assert manager.has_heard_all()


def test_a_keeper_that_was_killed(tmp_path: Path, manager: Manager) -> None:
    """The next one knows which worker died with it, and counts a restart."""
    world = World(tmp_path, "ready(); serve(7)", notify=manager.address)
    assert manager.heard() == ("READY=1 STATUS=done", [])
    files = [manager.heard()[1] for _ in range(4)]
    world.process.kill()
    world.end()
    worker = world.workers()[0]["pid"]
    left = json.loads(content(files[3][0]))
    assert (left["died"], left["restarts"], left["upgraded"]) == (worker, 1, False)
    world.unmount()
