"""The log: `setup` chooses outputs, `filter` levels, `format` the lines, `throttle` repetitions.

A field of one line is an argument of its log call; `format` escapes it and masks secrets. A field
of all lines is added in `setup`, to our lines and to those of libraries.
"""
