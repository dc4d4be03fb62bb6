"""Where a mount has reached S3, for the process that goes on with it after another one has died.

S3 or the network may be out of reach just then. So that process sends no request before it serves:
operations find out whether S3 answers, as they do at any other time, and the mount stays. What the
first one has learned from S3 is in the session's log. It counts as long as the settings that lead
to the bucket are the same.
"""

from dataclasses import asdict

from mountpoint.config import BucketConfig
from mountpoint.fs.session.log import SessionLog
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.capabilities import READ_FEATURES
from mountpoint.s3.connect import Reached
from mountpoint.s3.crt.client import CrtClient

#: The kind of the record in the session's log; a bucket's name is its number.
RECORD = "reached"


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
