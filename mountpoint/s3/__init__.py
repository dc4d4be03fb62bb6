"""Access to S3. Other packages use only `client`; a new S3 request starts there.

`client` declares the requests, `crt/` sends them, `wire/` formats them and parses the answers,
`aws/` holds regions, endpoints and credentials. `connect` finds the bucket at mount, and
`feature_probe` tests what its store supports; `capabilities` keeps that, and `fallback` sends
requests accordingly. `retry` holds deadlines and retries. `lost_answers` finds out whether a write
has succeeded although its answer was lost.
"""
