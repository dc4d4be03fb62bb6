"""Access to S3. Other packages use only `client`; a new S3 request starts there.

`client` declares the requests, and `ByteSource`, from which reads get their bytes. `crt/` sends the
requests (`REQUESTS` in `crt/client` names a counter for each), `wire/` formats them and parses the
answers, `aws/` holds regions, endpoints and credentials. `connect` finds the bucket at mount.

`feature_probe` tests what the store supports, and `capabilities` keeps that. `fallback` sends a
refused request again without its optional headers; callers replace operations that are missing.
`retry` holds deadlines and retries. `lost_answers` finds out whether a write has succeeded although
its answer was lost.
"""
