"""Uploads of a process that died are aborted; those of others stay."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mountpoint.errors import AccessDenied, TransportFault
from mountpoint.fs.session.log import SessionLog, new_log
from mountpoint.mount.kept.leftovers import RECORD, abort_uploads_of_the_dead
from mountpoint.s3.client import ObjectClient, PutOptions
from mountpoint.s3.retry import RetryPolicy
from mountpoint.upload.pending_journal import BucketAddress, Journal, journals
from tests.unit.fake_client import SAFE_S, FakeClient, Fault

ADDRESS = BucketAddress("bucket")

#: Records its arguments as uploads, and dies.
WRITER = """
import os, sys
from pathlib import Path
from mountpoint.upload.pending_journal import Journal, BucketAddress
journal = Journal(Path(sys.argv[1]), BucketAddress(sys.argv[2]))
for upload in sys.argv[3:]:
    journal.begun(b"key", upload)
os.kill(os.getpid(), 9)
"""


def killed(directory: Path, bucket: str, *uploads: str) -> int:
    """Leave the journal of a process that died; return its pid."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, directory, bucket, *uploads])
    process.wait(20)
    return process.pid


def abort(
    client: ObjectClient, directory: Path, *pids: int, retry_policy: RetryPolicy | None = None
) -> set[int]:
    """Abort what these processes have left, as the next one does; return those it has not done."""
    policy = retry_policy or RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event())
    session = SessionLog(new_log(), os.close)
    for pid in pids:
        session.note(RECORD, pid, {})
    abort_uploads_of_the_dead(session, directory, ADDRESS, client, policy)
    os.close(session.file)
    return set(session.records(RECORD))


def left(directory: Path) -> set[str]:
    with journals(directory) as found:
        return {upload for journal in found for upload in journal.uploads}


def begun(client: FakeClient, key: bytes) -> str:
    return client.create_upload(key, PutOptions()).result(SAFE_S)


def test_uploads_of_dead_processes(tmp_path: Path) -> None:
    """They are aborted, and no journal names them any more; an unknown one is forgotten."""
    with FakeClient({}) as client:
        mine, earliest, others, elsewhere = (begun(client, b"key") for _ in range(4))
        living = Journal(tmp_path, ADDRESS)
        living.begun(b"key", begun(client, b"key"))
        pid = killed(tmp_path, "bucket", mine, "unknown")
        earlier = killed(tmp_path, "bucket", earliest)
        killed(tmp_path, "bucket", others)
        killed(tmp_path, "another-bucket", elsewhere)
        assert abort(client, tmp_path, earlier, pid) == set()
        assert not {mine, earliest} & set(client.uploads)
        assert len(client.uploads) == 3
        assert left(tmp_path) == set(client.uploads)
        living.close()


def test_no_journals(tmp_path: Path) -> None:
    """Without any, there is nothing to do."""
    with FakeClient({}) as client:
        abort(client, tmp_path / "missing", os.getpid())
        assert client.requests == []


def test_a_refusal(tmp_path: Path) -> None:
    """What cannot be aborted stays in the journal, for mount-s3ctl cleanup."""
    with FakeClient({}) as client:
        pid = killed(tmp_path, "bucket", begun(client, b"key"))
        client.inject("abort_upload", Fault(error=AccessDenied("no right")))
        abort(client, tmp_path, pid)
        assert left(tmp_path) == set(client.uploads)
        assert len(client.uploads) == 1


def test_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as S3 does not answer, it is asked again."""
    monkeypatch.setattr("mountpoint.mount.kept.leftovers.AGAIN_S", 0.001)
    with FakeClient({}) as client:
        pid = killed(tmp_path, "bucket", begun(client, b"key"), begun(client, b"key"))
        retry_policy = RetryPolicy(try_s=1, total_s=1, stopping=threading.Event(), max_tries=1)
        silent = Fault(error=TransportFault("refused"))
        client.inject("abort_upload", *[silent] * 5)
        assert abort(client, tmp_path, pid, retry_policy=retry_policy) == set()
        assert client.uploads == {}
        assert left(tmp_path) == set()
        assert client.count("abort_upload") == 7


def test_the_end_of_the_mount(tmp_path: Path) -> None:
    """It is asked no longer; the uploads stay in the journal, for mount-s3ctl cleanup."""
    with FakeClient({}) as client:
        pid = killed(tmp_path, "bucket", begun(client, b"key"))
        stopping = threading.Event()
        retry_policy = RetryPolicy(try_s=1, total_s=1, stopping=stopping, max_tries=1)
        client.inject("abort_upload", Fault(error=TransportFault("refused")))
        stopping.set()
        assert abort(client, tmp_path, pid, retry_policy=retry_policy) == {pid}
        assert left(tmp_path) == set(client.uploads) != set()
