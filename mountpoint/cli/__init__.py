"""The command line of `mount-s3`.

`main` holds the option table: a new option starts there, and sets the field of its name in a class
of `config`, which also checks its range. `settings` converts units and combines options. `fstab`
reads `-o`, and `command` parses values and formats the help.
"""
