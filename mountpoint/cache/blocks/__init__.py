"""Blocks, without the interpreter: their format, their files, and reads in a lane.

`_checksums` and `_disk` are functions in C that these use.
"""
