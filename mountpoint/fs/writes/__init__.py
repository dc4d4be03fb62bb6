"""Changing files: opening them for writing, then streaming to S3 or staging on a local disk.

`streamed` is the default, `staged` the back end of --staged-writes. `backend` is their common
interface.
"""
