"""What a service manager has kept: whether it fits this mount, and what becomes of it."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mountpoint.config import BucketConfig, Config, FileSystemConfig, LogConfig, MountConfig
from mountpoint.mount import dead_mount
from mountpoint.mount.kept import keeper, stored
from mountpoint.system.kernel import TYPE
from mountpoint.system.mounts import MountInfo

CONFIG = Config(
    bucket=BucketConfig(name="bucket", prefix=b"caf\xe9/"),
    mount=MountConfig(directory="/mnt/a", keep_alive=True, kernel_options=("noexec",)),
    filesystem=FileSystemConfig(uid=0, gid=0),
    log=LogConfig(foreground=True),
)
#: Where the test passes descriptors.
FIRST = 700


class Manager(keeper.ServiceManager):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__("", {})
        self.told: list[str] = []

    def tell(self, message: str, descriptors: tuple[int, ...] = ()) -> None:
        self.told.append(message.replace("\n", " "))


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture(autouse=True)
def unmounted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories that were unmounted; /mnt/a and /mnt/b are mounted."""
    done: list[str] = []
    made = [MountInfo("0:1", "/", each, TYPE, ()) for each in ("/mnt/a", "/mnt/b")]
    monkeypatch.setattr(dead_mount, "mounts", lambda: made)
    monkeypatch.setattr(dead_mount, "unmount", done.append)
    monkeypatch.setattr(stored, "FIRST", FIRST)
    return done


class Passed:
    """Descriptors that a service manager passes to this process."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.mounted = -1

    def add(self, name: str, content: bytes = b"") -> None:
        """Pass a file; a device is a pipe, which reports POLLERR when nobody reads it."""
        if name.startswith("device"):
            self.mounted, file = os.pipe()
        else:
            file = os.memfd_create(name)
            os.write(file, content)
        os.dup2(file, FIRST + len(self.names))
        os.close(file)
        self.names.append(name)

    def mount(self, config: Config = CONFIG, **changed: Any) -> None:
        """Pass all that is kept of a mount."""
        terms = json.dumps({"terms": stored.terms(config) | changed})
        for name in ("log-3", "device-1", "requests-1"):
            self.add(name)
        self.add("state-1", terms.encode())

    def environ(self, pid: int | None = None) -> dict[str, str]:
        return {
            "LISTEN_PID": str(pid or os.getpid()),
            "LISTEN_FDS": str(len(self.names)),
            "LISTEN_FDNAMES": ":".join(self.names),
            "OTHER": "stays",
        }

    def take(self) -> stored.Stored:
        found = stored.take(self.environ())
        assert found is not None
        return found


@pytest.fixture
def passed() -> Iterator[Passed]:
    passed = Passed()
    yield passed
    os.closerange(FIRST, FIRST + 20)
    if passed.mounted >= 0:
        os.close(passed.mounted)


def test_only_what_is_ours_is_taken(passed: Passed) -> None:
    """Not what is for another process, and not a service's sockets."""
    passed.add("socket")
    assert stored.take({}) is None
    assert stored.take(passed.environ()) is None
    passed.add("log-2")
    assert stored.take(passed.environ(pid=1)) is None
    environ = passed.environ()
    found = stored.take(environ)
    assert environ == {"OTHER": "stays"}
    assert found is not None
    assert found.names == {"log-2": FIRST + 1}
    assert not os.get_inheritable(FIRST + 1)


def test_a_mount_that_goes_on(passed: Passed, manager: Manager, unmounted: list[str]) -> None:
    """All else may have changed; of two logs the newer one counts."""
    passed.add("log-2")
    passed.mount()
    passed.add("log-1")
    config = replace(CONFIG, filesystem=FileSystemConfig(uid=7, gid=0, file_mode=0o600))
    kept = stored.go_on(config, manager, passed.take())
    assert isinstance(kept, dict)
    assert sorted(kept) == ["device-1", "log-3", "requests-1", "state-1"]
    assert sorted(manager.told) == [f"FDSTOREREMOVE=1 FDNAME=log-{number}" for number in (1, 2)]
    assert unmounted == []


def other(name: str, value: Any) -> Config:
    """Return the configuration with another value in its mount."""
    return replace(CONFIG, mount=replace(CONFIG.mount, **{name: value}))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (other("read_only", True), "other settings now: --read-only"),
        (other("kernel_options", ()), "other settings now: -o"),
        (other("directory", "/mnt/b"), "other settings now: DIRECTORY"),
        (replace(CONFIG, log=LogConfig()), "other settings now: --foreground"),
        (
            replace(CONFIG, bucket=BucketConfig(name="another", prefix=b"cafe/")),
            "other settings now: BUCKET, --prefix",
        ),
    ],
)
def test_other_settings(
    passed: Passed, manager: Manager, unmounted: list[str], config: Config, reason: str
) -> None:
    """The mount is unmounted where it is, and forgotten."""
    passed.mount()
    assert stored.go_on(config, manager, passed.take()) == reason
    assert unmounted == ["/mnt/a"]
    assert len(manager.told) == 4
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(FIRST)


@pytest.mark.parametrize("how", ["format", "damaged", "incomplete"])
def test_another_version(passed: Passed, manager: Manager, how: str) -> None:
    """What cannot be understood is forgotten."""
    if how == "format":
        passed.mount(format=stored.FORMAT + 1)
    else:
        passed.add("device-1")
        passed.add("state-1", b"{" if how == "damaged" else b'{"terms": []}')
    assert stored.go_on(CONFIG, manager, passed.take()) == "another version of mount-s3 has left it"


def test_a_mount_that_has_ended(passed: Passed, manager: Manager, unmounted: list[str]) -> None:
    """There is nothing to say, and nothing to unmount; what is mounted there now is another's."""
    passed.mount()
    os.close(passed.mounted)
    passed.mounted = -1
    assert stored.go_on(CONFIG, manager, passed.take()) == ""
    assert len(manager.told) == 4
    assert unmounted == []


def test_a_mount_that_is_elsewhere(passed: Passed, manager: Manager, unmounted: list[str]) -> None:
    """It was unmounted with --lazy, and programs still use it."""
    config = other("directory", "/mnt/c")
    passed.mount(config)
    reason = stored.go_on(config, manager, passed.take())
    assert reason == "it is not mounted at /mnt/c any more"
    assert unmounted == []
