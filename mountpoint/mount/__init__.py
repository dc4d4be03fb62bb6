"""A mount's life: checks before it, going to the background, serving, its control socket.

`run` is the whole life, `build` makes the file system of its parts. `preflight` finds out before
mounting what would fail. `control` serves the socket, and `commands` has what mount-s3ctl can ask.
"""
