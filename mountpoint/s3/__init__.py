"""Access to S3. Other packages use only `client`; a new S3 request starts there.

`client` declares the requests, `crt/` sends them, `wire/` formats them and parses the answers,
`retry` holds deadlines and retries, `connect` finds the bucket at mount, `capabilities` keeps what
a store supports, `feature_probe` tests it at mount, and `aws/` holds regions, endpoints and
credentials.
"""
