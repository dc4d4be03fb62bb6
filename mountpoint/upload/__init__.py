"""Uploading objects: PUT, multipart and appending uploads, their requests, memory and parts.

`uploads` makes the uploads of a mount. A new S3 request of an upload goes into the module of its
kind: `multipart`, `completion` or `append`.
"""
