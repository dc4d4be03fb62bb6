"""`mount-s3ctl warm`: fill the data cache of a mount with files, by reading them through it.

`files` finds the files, `state` asks the mount what its caches lack of them, `warming` has them
read and checks that the caches have kept them, `pace` lets it keep up, and `command` shows it.
"""
