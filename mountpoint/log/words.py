"""Pure: names of buckets in messages."""

from mountpoint.config import BucketConfig
from mountpoint.log.format import printable


def display_name(bucket: BucketConfig) -> str:
    """Return the name of what is mounted, for messages."""
    name = f"bucket {bucket.name}"
    if not bucket.prefix:
        return name
    return f"prefix {printable(bucket.prefix.decode('utf-8', 'surrogateescape'))} of {name}"
