"""Where a mount has reached S3, for the process that goes on with it after another one has died.

S3 or the network may be out of reach just then. So that process sends no request before it serves:
operations find out whether S3 answers, as they do at any other time, and the mount stays. What the
first one has learned from S3 is in the session's log. It counts as long as the settings that lead
to the bucket are the same.
"""

import threading
from collections.abc import Mapping
from dataclasses import asdict

from mountpoint.config import BucketConfig, ClientConfig, CredentialsConfig
from mountpoint.fs.session.log import SessionLog
from mountpoint.metrics.recorder import Meters
from mountpoint.s3.aws.ec2 import Instance
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.capabilities import READ_FEATURES
from mountpoint.s3.connect import Reached, connect, reconnect
from mountpoint.s3.crt.client import CrtClient

#: The kind of the record in the session's log; a bucket's name is its number.
RECORD = "reached"


def client_of(
    log: SessionLog | None,
    bucket: BucketConfig,
    credentials: CredentialsConfig,
    config: ClientConfig,
    environ: Mapping[str, str],
    stopping: threading.Event,
    meters: Meters,
    instance: Instance,
) -> tuple[CrtClient, bool]:
    """Return a client for a bucket, and whether it goes by what the log says of that.

    Otherwise, or without a log, S3 was asked: then `note` the client. Raises MountError.
    """
    found = None if log is None else find(log, bucket)
    if found is not None:
        return reconnect(found, bucket, credentials, config, environ, meters), True
    return connect(bucket, credentials, config, environ, stopping, meters, instance), False


def note(log: SessionLog, bucket: BucketConfig, client: CrtClient) -> None:
    """Note where a bucket was reached, and what its store can do."""
    fields = {
        "settings": repr(bucket),
        "endpoint": asdict(client.endpoint),
        "features": {name: getattr(client.capabilities, name) for name in READ_FEATURES},
    }
    log.note(RECORD, bucket.name, fields)


def find(log: SessionLog, bucket: BucketConfig) -> Reached | None:
    """Return what `note` has noted; None: nothing, or with other settings."""
    fields = log.records(RECORD).get(bucket.name)
    if fields is None or fields["settings"] != repr(bucket):
        return None
    return Reached(Endpoint(**fields["endpoint"]), fields["features"])
