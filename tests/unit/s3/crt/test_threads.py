"""The CRT's threads keep their Python state between callbacks."""

import threading

from mountpoint.config import BucketConfig, ClientConfig
from mountpoint.metrics.counters import Counters
from mountpoint.s3.aws.endpoint import resolve
from mountpoint.s3.client import ObjectInfo
from mountpoint.s3.crt.client import CrtClient

#: No server listens there, so a request ends immediately, on a thread of the CRT.
NOWHERE = "http://127.0.0.1:1"


class Marks:
    """The sink of a GET: marks the thread on which it ends, in Python's state."""

    def __init__(self) -> None:
        self.local = threading.local()
        self.ends: list[tuple[int, int]] = []  # thread, and how often it was here before
        self.ended = threading.Semaphore(0)

    def on_headers(self, info: ObjectInfo) -> None:
        """See BodySink."""

    def on_body(self, chunk: bytes, offset: int) -> None:
        """See BodySink."""

    def finish(self, error: Exception | None) -> None:
        """See BodySink."""
        before = getattr(self.local, "ends", 0)
        self.local.ends = before + 1
        self.ends.append((threading.get_native_id(), before))
        self.ended.release()


def test_a_thread_that_calls_again_is_known() -> None:
    """The next callback in the same thread finds the mark."""
    bucket = BucketConfig("bucket", endpoint_url=NOWHERE, force_path_style=True)
    client = CrtClient(resolve(bucket, "us-east-1"), None, ClientConfig(), counters=Counters())
    marks = Marks()
    try:
        for _ in range(5):
            client.get(ObjectInfo(b"key", 1, 0, ""), 0, 1, marks)
            assert marks.ended.acquire(timeout=60)
    finally:
        client.close()
    threads = [thread for thread, _ in marks.ends]
    assert threading.get_native_id() not in threads
    for thread in set(threads):
        befores = [before for each, before in marks.ends if each == thread]
        assert befores == list(range(len(befores)))
