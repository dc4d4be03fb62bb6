"""Messages to the service manager."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mountpoint.system.sd_notify import notify


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """A socket like systemd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as it:
        it.bind(address.replace("@", "\0", 1))
        it.settimeout(10)
        yield it


@pytest.mark.parametrize("abstract", [False, True])
def test_the_state_is_sent(abstract: bool, tmp_path: Path) -> None:
    """One message, to a path or an abstract address; child processes send none."""
    address = f"@{tmp_path}" if abstract else str(tmp_path / "socket")
    environ = {"NOTIFY_SOCKET": address, "OTHER": "x"}
    with manager(address) as it:
        notify(environ, READY="1", STATUS="b\udc80d")
        assert it.recv(1000) == b"READY=1\nSTATUS=b\\udc80d"
    assert environ == {"OTHER": "x"}


def test_without_a_manager_nothing_is_sent() -> None:
    """Without the variable nothing happens."""
    with capture_logs() as lines:
        notify({}, READY="1")
    assert lines == []


@pytest.mark.parametrize("address", ["/nowhere/socket", "relative", "/" + "x" * 200, "@"])
def test_a_missing_manager_is_logged(address: str) -> None:
    """A missing manager is logged, and no error."""
    with capture_logs() as lines:
        notify({"NOTIFY_SOCKET": address}, READY="1")
    (line,) = lines
    assert line["log_level"] == "warning"
