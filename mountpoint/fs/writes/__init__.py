"""Changing files: opening them to write, streamed to S3 or staged on a local disk first."""
