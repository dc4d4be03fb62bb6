"""The control socket without a mount: its clients, and answers to invalid requests."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mountpoint.errors import MountError
from mountpoint.mount import control
from mountpoint.mount.control import Control, ask


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return the directory of the sockets."""
    return tmp_path / "control"


@pytest.fixture
def listening(directory: Path) -> Iterator[Path]:
    """A socket whose command "echo" returns its request; its path."""

    def refuse(request: object) -> dict[str, object]:
        raise MountError("it cannot be done", "do another thing")

    made = Control(directory, {"echo": dict, "refuse": refuse})
    (path,) = directory.iterdir()
    yield path
    made.close()


def said(path: Path, line: bytes) -> bytes:
    """Return the answer to a line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(control.ANSWER_S)
        connection.connect(str(path))
        connection.sendall(line)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
    return answer


def test_a_question_and_its_answer(listening: Path) -> None:
    """The command gets the request, and its errors are raised at the client."""
    assert ask(listening, "echo", more=[1, "x"]) == {"command": "echo", "more": [1, "x"]}
    with pytest.raises(MountError, match="it cannot be done\ndo another thing"):
        ask(listening, "refuse")
    with pytest.raises(MountError, match="must be one of echo, refuse"):
        ask(listening, "other")


@pytest.mark.parametrize(
    "line",
    [b"\n", b"[]\n", b'"echo"\n', b"{\n", b"\xff\n", b"7\n", b"[" * 9000 + b"\n"],
    ids=lambda line: line[:7].decode("latin-1").strip(),
)
def test_nonsense_is_answered(listening: Path, line: bytes) -> None:
    """An invalid command is an error, and the next one is answered."""
    assert b"must be one of" in said(listening, line)
    assert ask(listening, "echo") == {"command": "echo"}


@pytest.mark.parametrize(("peer_uid", "answered"), [(0, True), (1, False)])
def test_only_the_owner_and_root_may_ask(
    listening: Path, monkeypatch: pytest.MonkeyPatch, peer_uid: int, answered: bool
) -> None:
    """Another user who can open the socket gets no answer."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(control, "_peer_uid", lambda connection: peer_uid)
    # If the server closes a socket before it reads the request, the client may get an error.
    try:
        answer = said(listening, b'{"command": "echo"}\n')
    except ConnectionError:
        answer = b""
    assert bool(answer) is answered


def test_another_user_listens(listening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command is not sent to another user's process."""
    monkeypatch.setattr(control, "_peer_uid", lambda connection: os.geteuid() + 1)
    with pytest.raises(PermissionError, match="another user listens there"):
        ask(listening, "echo")


def test_a_link_in_place_of_the_directory(directory: Path, tmp_path: Path) -> None:
    """The socket is not created where a symbolic link leads."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    directory.symlink_to(elsewhere)
    with capture_logs() as lines:
        Control(directory, {}).close()
    assert [line["reason"] for line in lines] == ["it is a symbolic link"]
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o701])
def test_a_directory_that_others_can_enter(directory: Path, mode: int) -> None:
    """The socket is not created, with a log line, and the mount continues without."""
    directory.mkdir()
    directory.chmod(mode)
    with capture_logs() as lines:
        Control(directory, {}).close()
    assert [line["reason"] for line in lines] == (
        [] if mode == 0o700 else ["other users can enter the directory"]
    )
    assert list(directory.iterdir()) == []
