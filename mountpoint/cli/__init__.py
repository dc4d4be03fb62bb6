"""The command line of `mount-s3`.

`main` holds the option table: a new option starts there. `settings` turns options into a `Config`,
`fstab` reads `-o`, and `command` parses values and formats the help.
"""
