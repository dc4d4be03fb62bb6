"""Pure: S3 requests and answers on the wire.

`reading` formats and parses GET, HEAD and LIST, `writing` all requests that write. `errors` maps
S3 error codes to exceptions, `checksum` verifies bodies, and `xml` parses XML safely.
"""
