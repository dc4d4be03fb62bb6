"""`mount-s3ctl`: commands about mounts, from outside of them.

`main` defines the commands; each has a module of its own. `mounts` finds the mounts, `group` holds
JSON output, errors and exit codes, `terminal` and `words` the presentation.
"""
