"""`mount-s3ctl cache`: what is in a data cache, whether it is right, and its end.

`inventory` counts blocks by bucket, `checking` compares them with their checksums, `hits` asks
running mounts, and `command` shows it.
"""
