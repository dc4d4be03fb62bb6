"""Pure: what a bucket is called in messages."""

from mountpoint.config import BucketConfig
from mountpoint.log.format import printable


def describe(bucket: BucketConfig) -> str:
    """Return what is mounted, in words."""
    name = f"bucket {bucket.name}"
    if not bucket.prefix:
        return name
    return f"prefix {printable(bucket.prefix.decode('utf-8', 'surrogateescape'))} of {name}"
