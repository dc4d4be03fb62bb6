"""Uploads of a process that died are aborted; those of others stay."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from mountpoint.errors import AccessDenied
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


def abort(client: ObjectClient, directory: Path, *pids: int) -> None:
    """Abort what these processes have left, as the next one does."""
    retry_policy = RetryPolicy(try_s=SAFE_S, total_s=SAFE_S, stopping=threading.Event())
    session = SessionLog(new_log(), os.close)
    for pid in pids:
        session.note(RECORD, pid, {})
    abort_uploads_of_the_dead(session, directory, ADDRESS, client, retry_policy)
    assert session.records(RECORD) == {}
    os.close(session.file)


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
        abort(client, tmp_path, earlier, pid)
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
