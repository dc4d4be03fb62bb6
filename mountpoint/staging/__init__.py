"""Files that are written in any order: on a local disk first, in S3 when they are closed."""
