"""`mount-s3 --check`: test everything that mounting needs, without mounting.

`command` lists the checks in order. They are in `machine`, `settings` (configuration, credentials,
endpoint), `network`, `bucket` and `throughput`. `checklist` runs them, `report` shows the results.
"""
