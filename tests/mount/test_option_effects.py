"""Effects of options that no other test covers, on real mounts.

`tests/unit/cli/test_option_table.py` names the test of each option.
"""

import errno
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.faulty_proxy import Exchange, FaultyProxy
from tests.mount.mounting import (
    PROGRAM,
    clean_up,
    content,
    environment,
    errno_of,
    eventually,
    foreground,
    mounted,
    run,
    store_options,
)

pytestmark = pytest.mark.mount

MIB = 1 << 20

#: A name that ends like a directory bucket's.
DIRECTORY = "files--use1-az4--x-s3"


@pytest.fixture
def proxy(flat_store: Store) -> Iterator[FaultyProxy]:
    """A proxy in front of the store that records every request."""
    with FaultyProxy(flat_store.endpoint_url) as made:
        yield made


# --- the bucket ---


def test_general_purpose(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without sessions can be mounted with a directory bucket's name."""
    monkeypatch.setenv("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", "true")
    client = store.new_client()
    client.create_bucket(Bucket=DIRECTORY)
    client.put_object(Bucket=DIRECTORY, Key="file", Body=b"content")
    path = folder / "mnt"
    path.mkdir()
    without = run(DIRECTORY, path, *store_options(store), env=store.environment)
    assert without.returncode == 1
    with mounted(store, folder, "--bucket-type", "general-purpose", bucket=DIRECTORY) as mount:
        assert os.listdir(mount.path) == ["file"]
        assert (mount.path / "file").read_bytes() == b"content"
        (mount.path / "new").write_bytes(b"more")
    assert client.get_object(Bucket=DIRECTORY, Key="new")["Body"].read() == b"more"


@pytest.mark.parametrize("bucket_type", ["directory", "general-purpose"])
def test_directory(flat_store: Store, folder: Path, proxy: FaultyProxy, bucket_type: str) -> None:
    """A listing without order proves nothing about other names: each lookup sends a request."""
    names = [f"{number:02d}" for number in range(6)]
    for name in names:
        flat_store.put(f"unordered/{name}")
    seen = []
    options = ["--prefix", "unordered/", "--bucket-type", bucket_type, "--metadata-ttl", "0"]
    with mounted(flat_store, folder, *options, endpoint_url=proxy.url) as mount:
        assert sorted(os.listdir(mount.path)) == names
        proxy.faults.append(lambda exchange: seen.append(exchange.method))
        for name in names:
            (mount.path / name).stat()
    if bucket_type == "directory":
        assert seen.count("HEAD") >= len(names)
    else:
        assert set(seen) == {"GET"}


# --- new objects ---


def test_new_objects(flat_store: Store, folder: Path, proxy: FaultyProxy) -> None:
    """Owner, class, encryption and content type are in each PUT, and checksums as requested."""
    seen: list[Exchange] = []
    proxy.faults.append(lambda exchange: seen.append(exchange))
    options = ["--expected-bucket-owner", "111122223333", "--storage-class", "STANDARD_IA"]
    options += ["--sse", "aws:kms", "--sse-kms-key-id", "alias/mine", "--infer-content-type"]
    options += ["--upload-checksums", "crc64nvme", "--prefix", "objects/"]
    with mounted(flat_store, folder, *options, endpoint_url=proxy.url) as mount:
        (mount.path / "page.html").write_bytes(b"<p>")
    owners = {each.header("x-amz-expected-bucket-owner") for each in seen}
    assert owners == {"111122223333"}
    (put,) = [each for each in seen if each.method == "PUT"]
    assert put.header("x-amz-storage-class") == "STANDARD_IA"
    assert put.header("x-amz-server-side-encryption") == "aws:kms"
    assert put.header("x-amz-server-side-encryption-aws-kms-key-id") == "alias/mine"
    assert put.header("Content-Type") == "text/html"
    assert put.header("x-amz-checksum-crc64nvme") is not None


@pytest.mark.parametrize("staged", [False, True])
def test_content_types_of_final_names(flat_store: Store, folder: Path, staged: bool) -> None:
    """A file that is written under a temporary name gets the content type of its final name."""
    (folder / "stage").mkdir()
    prefix = f"types-{staged}/"
    options = ["--infer-content-type", "--allow-rename", "--allow-overwrite", "--prefix", prefix]
    options += ["--staged-writes", str(folder / "stage")] if staged else []
    with mounted(flat_store, folder, *options) as mount:
        path = mount.path / "page.html"
        path.write_bytes(b"1")
        subprocess.run(["sed", "-i", "s/1/2/", path], check=True)
        (mount.path / "new.tmp").write_bytes(b"3")
        (mount.path / "new.tmp").replace(mount.path / "new.css")
        (mount.path / "direct.png").write_bytes(b"4")

    def found(name: str) -> str:
        at = {"Bucket": flat_store.bucket, "Key": prefix + name}
        return str(flat_store.client().head_object(**at)["ContentType"])

    assert content(flat_store, f"{prefix}page.html") == b"2"
    types = [found(name) for name in ("page.html", "new.css", "direct.png")]
    assert types == ["text/html", "text/css", "image/png"]


def test_new_objects_by_default(flat_store: Store, folder: Path, proxy: FaultyProxy) -> None:
    """Without these options the bucket's defaults apply."""
    seen: list[Exchange] = []
    proxy.faults.append(lambda exchange: seen.append(exchange))
    options = ["--prefix", "objects/", "--upload-checksums", "off"]
    with mounted(flat_store, folder, *options, endpoint_url=proxy.url) as mount:
        (mount.path / "plain.html").write_bytes(b"<p>")
    (put,) = [each for each in seen if each.method == "PUT"]
    names = {name.lower() for name in put.request_headers}
    assert not any(name.startswith(("x-amz-checksum", "x-amz-server-side")) for name in names)
    assert not names & {"x-amz-storage-class", "x-amz-expected-bucket-owner"}
    assert put.header("Content-Type") != "text/html"


# --- sizes ---


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (["--part-size", "65536"], 65536),
        (["--part-size", "65536", "--read-part-size", "131072"], 131072),
    ],
)
def test_reading_in_parts(
    flat_store: Store, folder: Path, proxy: FaultyProxy, options: list[str], most: int
) -> None:
    """No GET is larger than a part, and the bytes are the same."""
    body = os.urandom(2 * MIB)
    flat_store.put("sizes/file", body)
    sizes: list[int] = []

    def note(exchange: Exchange) -> None:
        if exchange.is_data:
            sizes.append(len(exchange.body))

    proxy.faults.append(note)
    options = [*options, "--prefix", "sizes/"]
    with mounted(flat_store, folder, *options, endpoint_url=proxy.url) as mount:
        assert (mount.path / "file").read_bytes() == body
    assert sum(sizes) >= len(body)
    assert max(sizes) <= most
    assert len(sizes) >= len(body) // most


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--write-part-size", str(5 * MIB)], [5 * MIB, 5 * MIB, 2 * MIB]),
        ([], [8 * MIB, 4 * MIB]),
    ],
)
def test_writing_in_parts(store: Store, folder: Path, options: list[str], parts: list[int]) -> None:
    """A file is uploaded in parts of that size."""
    sizes: list[int] = []

    def note(exchange: Exchange) -> None:
        if exchange.method == "PUT" and "partNumber=" in exchange.target:
            sizes.append(exchange.body_size)

    with FaultyProxy(store.endpoint_url) as proxy:
        proxy.faults.append(note)
        with mounted(store, folder, *options, endpoint_url=proxy.url) as mount:
            (mount.path / f"sizes-{len(parts)}").write_bytes(os.urandom(12 * MIB))
    assert sorted(sizes, reverse=True) == parts


@pytest.fixture(scope="module")
def large(flat_store: Store) -> str:
    """The prefix of a file that is larger than what is read ahead."""
    flat_store.put("memory/file", bytes(72 * MIB))
    return "memory/"


@pytest.mark.parametrize(("options", "little"), [(["--memory-target", "16"], True), ([], False)])
def test_memory(
    flat_store: Store,
    folder: Path,
    proxy: FaultyProxy,
    large: str,
    options: list[str],
    little: bool,
) -> None:
    """Read-ahead is limited by the memory target."""
    read = 32 * MIB
    ends = [0]

    def note(exchange: Exchange) -> None:
        wanted = exchange.header("Range") if exchange.is_data else None
        if wanted is not None:
            ends.append(int(wanted.rpartition("-")[2]) + 1)

    proxy.faults.append(note)
    options = [*options, "--prefix", large]
    with (
        mounted(flat_store, folder, *options, endpoint_url=proxy.url) as mount,
        (mount.path / "file").open("rb", buffering=0) as file,
    ):
        for _ in range(read // MIB):
            file.read(MIB)
        if not little:
            eventually(lambda: max(ends) > read + 32 * MIB)
        time.sleep(0.5)  # by now the rest of the read-ahead is requested
        ahead = max(ends) - read
    # The kernel itself reads ahead up to a MiB.
    assert ahead <= 17 * MIB if little else ahead > 32 * MIB


def test_threads(flat_store: Store, folder: Path, proxy: FaultyProxy) -> None:
    """With --max-threads 1 only one reader waits for S3 at a time.

    The kernel keeps no attributes of the mount's directory, so a path that this thread resolves
    there would never be answered.
    """
    for number in range(4):
        flat_store.put(f"threads/{number}", b"x")
    at_once: list[int] = []
    busy = [0]
    lock = threading.Lock()

    def slow(exchange: Exchange) -> None:
        if exchange.is_data:
            with lock:
                busy[0] += 1
                at_once.append(busy[0])
            time.sleep(0.3)
            with lock:
                busy[0] -= 1

    proxy.faults.append(slow)
    most = {}
    for threads in ("1", "8"):
        options = ["--max-threads", threads, "--prefix", "threads/", "--metadata-ttl", "0"]
        with (
            mounted(flat_store, folder, *options, endpoint_url=proxy.url) as mount,
            ThreadPoolExecutor(4) as readers,
        ):
            at_once.clear()  # the probe at mount reads two bytes in parallel
            paths = [mount.path / str(number) for number in range(4)]
            assert list(readers.map(Path.read_bytes, paths)) == [b"x"] * 4
        most[threads] = max(at_once)
    assert most["1"] == 1
    assert most["8"] > 1


# --- permissions ---


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_allow_root(store: Store) -> None:
    """Root has access to another user's mount with --allow-root, and not without it."""
    store.put("root/file", b"alive")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with tempfile.TemporaryDirectory(prefix="mount-s3-test-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        path = folder / "mnt"
        path.mkdir()
        path.chmod(0o777)
        for options, allowed in (([], False), (["--allow-root"], True)):
            arguments = [store.bucket, str(path), *store_options(store), "--no-log", *options]
            # That user may not be able to start this interpreter, which a keeper needs.
            arguments.append("--no-keep-alive")
            script = f"""
                set -e
                echo user_allow_other > {folder}/fuse.conf
                mount --bind {folder}/fuse.conf /etc/fuse.conf
                rm -f {folder}/fuse && mknod -m 666 {folder}/fuse c 10 229
                mount --bind {folder}/fuse /dev/fuse
                {shlex.join([*nobody, str(PROGRAM), *arguments])} >/dev/null
                ls {path} >/dev/null 2>&1 && echo seen || echo hidden
                fusermount -u {path}
            """
            result = subprocess.run(
                ["unshare", "--mount", "sh", "-c", script],
                env=environment(store.environment | {"HOME": str(folder)}),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            clean_up(path)
            assert (result.returncode, result.stderr) == (0, "")
            assert result.stdout == ("seen\n" if allowed else "hidden\n")


# --- the log ---


@pytest.mark.parametrize(
    ("options", "said", "unsaid"),
    [
        (["--debug"], ["debug"], ["awscrt"]),
        (["--debug-crt"], ["awscrt"], []),
    ],
)
def test_debug_options(
    store: Store, folder: Path, options: list[str], said: list[str], unsaid: list[str]
) -> None:
    """--debug logs more of our own lines, --debug-crt those of the CRT."""
    with mounted(store, folder, *options) as mount:
        os.listdir(mount.path)
        log = mount.log
    assert all(word in log for word in said)
    assert not any(word in log for word in unsaid)


@pytest.mark.parametrize("options", [[], ["--no-log"]])
def test_nothing_is_logged(store: Store, folder: Path, options: list[str]) -> None:
    """With --no-log only the program learns of a refusal."""
    with foreground(store, folder, *options) as (program, path):
        assert errno_of(lambda: os.symlink("a", path / "link")) == errno.EPERM
        program.terminate()
        assert program.stdout is not None
        said = program.stdout.read()
    assert "is mounted at" in said
    assert ("errno=EPERM" in said) is not bool(options)
