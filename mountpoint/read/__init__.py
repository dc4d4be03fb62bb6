"""Reading one object: which ranges to fetch, fetching them, replying from them.

`stream` serves an open object. `readahead` plans its ranges from the `patterns` of its reads, and
`streams` holds what all streams share. `prefetch` fetches small files ahead of their opens,
`history` predicts how much of a file will be read, and `whole_checksum` verifies files that are
read completely.
"""
