"""The bucket of the shared cache: its address, its client, and a check that it can be used.

Addressing and credentials are those of the mounted bucket. The client is another one, so that its
requests, and the state of the bucket, are not mixed with those of the mount.
"""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace

from mountpoint.cache.shared.cache import SharedCache
from mountpoint.cache.shared.filling import PREFIX, put
from mountpoint.config import MIB, BucketConfig, Config
from mountpoint.errors import MountError, S3Error
from mountpoint.fs.session.log import SessionLog
from mountpoint.metrics.recorder import Meters
from mountpoint.mount.kept import reached
from mountpoint.s3.aws.ec2 import Instance
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.client import Body, ObjectClient
from mountpoint.s3.retry import RetryPolicy

#: Blocks that wait to be sent: this part of the memory target, and at most so many bytes.
QUEUE_SHARE = 16
MAX_QUEUE_BYTES = 16 * MIB

#: Seconds for one request, and how often it is sent.
TRY_S = 10.0
MAX_TRIES = 2

#: The object that mounts write to see whether they may.
CHECK_KEY = f"{PREFIX}check".encode()
CHECK = Body((b"mount-s3",), 8)
#: What to do if they may not.
NEEDED = (
    "the credentials need s3:PutObject and s3:GetObject for its objects; "
    "for a directory bucket s3express:CreateSession"
)


def cache_bucket(config: Config) -> BucketConfig | None:
    """Return where the shared cache is; None if there is to be none.

    Raises MountError if the mount would show its objects.
    """
    name = config.cache.bucket
    if name is None:
        return None
    prefix = PREFIX.encode()
    mounted = config.bucket.prefix
    if name == config.bucket.name and (prefix.startswith(mounted) or mounted.startswith(prefix)):
        raise MountError(
            f"bucket '{name}' cannot be its own cache: the blocks would be files of the mount",
            "give another bucket to --cache-xz, or mount a --prefix",
        )
    return replace(
        config.bucket, name=name, prefix=prefix, transfer_acceleration=False, bucket_type=None
    )


@contextlib.contextmanager
def shared_cache(
    config: Config,
    mounted: Endpoint,
    environ: Mapping[str, str],
    stopping: threading.Event,
    meters: Meters,
    instance: Instance,
    log: SessionLog | None = None,
) -> Iterator[SharedCache | None]:
    """Connect to the shared cache, if there is to be one, and check that it can be used.

    `mounted` is the endpoint of the mounted bucket. `log` is that of the mount's session: if it
    says where a process before has reached the cache, nothing is checked. Raises MountError.
    """
    bucket = cache_bucket(config)
    if bucket is None:
        yield None
        return
    # Its bodies go through the interpreter, which is no faster with more loops.
    client_config = replace(config.client, event_loops=1, native=False)
    try:
        client, reached_before = reached.client_of(
            log, bucket, config.credentials, client_config, environ, stopping, Meters(), instance
        )
    except MountError as error:
        raise unusable(error) from error
    retry_policy = RetryPolicy(
        try_s=TRY_S, total_s=2 * TRY_S, stopping=stopping, max_tries=MAX_TRIES
    )
    try:
        if not reached_before:
            check_usable(client, bucket.name, retry_policy)
            if log is not None:
                reached.note(log, bucket, client)
        shared = SharedCache(
            client,
            bucket.name,
            mounted.host + mounted.base_path,
            config.bucket.name,
            meters.counters,
            retry_policy,
            queue_bytes=min(config.read.memory_bytes // QUEUE_SHARE, MAX_QUEUE_BYTES),
        )
        try:
            yield shared
        finally:
            shared.close()
    finally:
        client.close()


def unusable(error: MountError) -> MountError:
    """Return the error for a cache bucket that cannot be reached or listed."""
    return MountError(f"the shared cache cannot be used: {error.what}", error.hint)


def check_usable(client: ObjectClient, name: str, retry_policy: RetryPolicy) -> None:
    """Raise MountError unless objects can be written to the cache bucket, and read."""
    try:
        put(client, retry_policy, CHECK_KEY, CHECK)
        retry_policy.ask(lambda: client.head(CHECK_KEY)).answer()
    except S3Error as error:
        raise MountError(
            f"the shared cache in bucket '{name}' cannot be written or read ({error})",
            error.hint or NEEDED,
        ) from error
