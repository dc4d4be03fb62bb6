"""Whether a mount is alive and well."""

import threading
from typing import Any

import pytest

from mountpoint.errors import CredentialsUnavailable
from mountpoint.metrics.export import health
from mountpoint.metrics.export.health import Health
from mountpoint.metrics.recorder import Meters
from mountpoint.system.kernel import mount_points


class World:
    """A mount's health, with a clock that tests set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: str = "/") -> None:
        self.now_s = 1000.0
        self.meters = Meters(threads=2)
        self.stopping = threading.Event()
        monkeypatch.setattr("mountpoint.metrics.recorder.time.monotonic", lambda: self.now_s)
        self.health = Health(self.meters, self.stopping, directory, 60, lambda: self.now_s)

    def serve(self, check: Any = lambda: None) -> None:
        """Report the mount as serving."""
        self.health.serving(check)

    def both(self) -> tuple[str, str]:
        """The answers of /livez and /healthz."""
        return self.health.why_not_alive(), self.health.why_not_well()


def test_from_the_beginning_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mount is healthy while it is mounted, and neither before nor after."""
    world = World(monkeypatch)
    assert world.both() == ("the bucket is not mounted yet", "the bucket is not mounted yet")
    world.serve()
    assert world.both() == ("", "")
    world.stopping.set()
    assert world.both() == ("the bucket is being unmounted", "the bucket is being unmounted")


def test_mounted_and_detached_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detached mount serves no new program; one that was never visible proves nothing."""
    world = World(monkeypatch, "/detached")
    monkeypatch.setattr(health, "mount_points", lambda: {"/detached": "0:1"})
    world.serve()
    assert world.both() == ("", "")
    monkeypatch.setattr(health, "mount_points", mount_points)
    assert "the mount at /detached is gone" in world.both()[0]
    other = World(monkeypatch, "/dev/fd/5")
    other.serve()
    assert other.both() == ("", "")


def test_credentials_that_have_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expired credentials show without a request; a restart does not help."""

    def check() -> None:
        raise CredentialsUnavailable("the credentials have expired")

    world = World(monkeypatch)
    world.serve(check)
    assert world.both() == ("", "the credentials have expired")


def test_s3_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing S3 shows for as long as requests may wait; a missing object is no failure."""
    world = World(monkeypatch)
    world.serve()
    world.meters.request("GetObject").end(503, "SlowDown")
    world.now_s += 59
    world.meters.request("GetObject").end(503, "SlowDown")
    assert world.both() == ("", "")
    world.now_s += 1
    assert world.both() == ("", "all requests of the last 60 s have failed: SlowDown")
    world.meters.request("HeadObject").end(404)
    assert world.both() == ("", "")


def test_threads_that_are_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads are busy, and no operation or request has ended for three minutes."""
    world = World(monkeypatch)
    world.serve()
    timer = world.meters.operation("read")
    begun = [timer.begin(), timer.begin()]
    request = world.meters.request("GetObject")
    assert world.both() == ("", "")
    world.now_s += 100
    request.end(None)
    assert world.both() == ("", "")
    world.now_s += 179
    assert world.both() == ("", "")
    world.now_s += 1
    expected = "all 2 threads are busy, and no operation has ended for 180 s"
    assert world.both() == (expected, expected)
    timer.end(begun.pop())
    assert world.both() == ("", "")
    timer.begin()
    world.now_s += 10
    assert world.both() == ("", "")
