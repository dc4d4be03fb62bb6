"""Staged files: written in any order on a local disk, uploaded to S3 when they are closed."""
