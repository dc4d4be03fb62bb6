"""File servers for the network, with a mount as their folder: nginx and Samba."""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import Mount, content, errno_of, eventually, mounted
from tools.processes import Ports, end_process_group

pytestmark = pytest.mark.mount

NGINX = """
user root;
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile on;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        autoindex on;
    }}
}}
"""

SAMBA = """
[global]
    interfaces = lo
    bind interfaces only = yes
    smb ports = {port}
    server role = standalone
    map to guest = bad user
    guest account = root
    log file = {folder}/log
    pid directory = {folder}
    lock directory = {folder}
    state directory = {folder}
    cache directory = {folder}
    private dir = {folder}
    ncalrpc dir = {folder}/ncalrpc
    disable netbios = yes
    load printers = no
    store dos attributes = no
    map archive = no
[mount]
    path = {root}
    guest ok = yes
    read only = no
"""


@pytest.fixture
def program_folder(tmp_path: Path) -> Path:
    """A folder for a server's own files."""
    folder = tmp_path / "server"
    folder.mkdir()
    return folder


@contextlib.contextmanager
def running(*command: str | Path, port: int) -> Iterator[None]:
    """Run a server; yield when it answers on its port, and end it afterwards."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as server,
    ):
        try:
            eventually(lambda: server.poll() is not None or answers(port))
            log.seek(0)
            assert server.poll() is None, log.read()
            yield
        finally:
            end_process_group(server.pid, server)


def answers(port: int) -> bool:
    """Whether a server answers on a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a port that was free a moment ago."""
    ports = Ports()
    port = ports.one()
    ports.release()
    return port


def needs(*programs: str) -> None:
    """Skip the test without these programs, or without root."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if os.geteuid() != 0:
        pytest.skip("the server has to be root, as the owner of the mount")


def test_nginx(store: Store, folder: Path, program_folder: Path) -> None:
    """nginx sends a whole file, ranges and a listing from a mount."""
    needs("nginx")
    data = os.urandom(3_000_000)
    store.put("nginx/data", data)
    port = free_port()
    configuration = program_folder / "nginx.conf"
    with mounted(store, folder, "--prefix", "nginx/") as mount:
        configuration.write_text(NGINX.format(folder=program_folder, port=port, root=mount.path))
        with running("nginx", "-p", program_folder, "-c", configuration, port=port):
            assert fetch(port, "data") == data
            assert fetch(port, "data", "bytes=1000000-1000999") == data[1_000_000:1_001_000]
            assert b">data</a>" in fetch(port, "")


def fetch(port: int, path: str, content_range: str = "bytes=0-") -> bytes:
    """Return a web server's answer for a range of a path."""
    headers = {"Range": content_range} if path else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        body: bytes = answer.read()
    return body


@pytest.fixture(params=["streamed", "staged"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The options for a share, with and without staged writes."""
    staging = tmp_path / "staging"
    staging.mkdir()
    staged = ["--staged-writes", str(staging)] if request.param == "staged" else []
    allowed = ["--allow-overwrite", "--allow-delete", "--allow-rename"]
    return [*allowed, "--attributes", "ignore", *staged]


def test_samba(store: Store, folder: Path, program_folder: Path, options: list[str]) -> None:
    """A Samba share of a mount can create, replace, rename, send and delete files."""
    needs("smbd", "smbclient")
    port = free_port()
    configuration = program_folder / "smb.conf"
    one, two, got = (program_folder / name for name in ("one", "two", "got"))
    one.write_bytes(os.urandom(2_000_000))
    two.write_bytes(os.urandom(1_000_000))
    prefix = f"samba{len(options)}/"
    with mounted(store, folder, "--prefix", prefix, *options) as mount:
        configuration.write_text(SAMBA.format(folder=program_folder, port=port, root=mount.path))
        smbd = ("smbd", "--foreground", "--no-process-group", "--debug-stdout")
        with running(*smbd, "--configfile", configuration, port=port):
            share(mount, port, program_folder, f"put {one} a; put {two} b; mkdir d; rename b d/b")
            eventually(lambda: content(store, f"{prefix}a") == one.read_bytes())
            eventually(lambda: content(store, f"{prefix}d/b") == two.read_bytes())
            share(mount, port, program_folder, f"get a {got}; put {two} a; del d/b")
            assert got.read_bytes() == one.read_bytes()
            eventually(lambda: content(store, f"{prefix}a") == two.read_bytes())
            eventually(lambda: content(store, f"{prefix}d/b") is None)
            for each in (one, two):
                share(mount, port, program_folder, f"put {each} a; get a {got}; put {each} a")
                assert got.read_bytes() == each.read_bytes()


def test_a_reference(store: Store, folder: Path, options: list[str]) -> None:
    """A file can be opened by a descriptor of a version that is no longer the newest."""
    key = f"reference{len(options)}/a"
    store.put(key, b"earlier")
    with mounted(store, folder, "--prefix", key[:-1], *options) as mount:
        path = mount.path / "a"
        descriptor = os.open(path, os.O_PATH)
        reference = Path(f"/proc/self/fd/{descriptor}")
        try:
            assert reference.read_bytes() == b"earlier"
            path.write_bytes(b"ours, larger")
            assert os.fstat(descriptor).st_size == 12
            assert reference.read_bytes() == b"ours, larger"
            store.put(key, b"theirs")
            assert reference.read_bytes() == b"theirs"
            assert reference.stat().st_size == 6
            reference.write_bytes(b"by the reference")
            assert path.read_bytes() == reference.read_bytes() == b"by the reference"
            eventually(lambda: content(store, key) == b"by the reference")
            with path.open("rb") as reader:
                assert errno_of(lambda: reference.write_bytes(b"x")) == errno.EPERM
                path.write_bytes(b"by name")
                assert reader.read() == b"by the reference"
            assert reference.read_bytes() == b"by name"
            path.unlink()
            assert errno_of(reference.read_bytes) == errno.ENOENT
        finally:
            os.close(descriptor)


def share(mount: Mount, port: int, folder: Path, commands: str) -> None:
    """Run commands of smbclient on the share."""
    address = ("//127.0.0.1/mount", "--port", str(port), "--no-pass")
    client = ("smbclient", *address, "--configfile", folder / "smb.conf", "--command", commands)
    done = subprocess.run(client, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert (done.returncode, "NT_STATUS" in said) == (0, False), said + mount.log
