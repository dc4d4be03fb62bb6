"""The log: `setup` chooses outputs, `filter` levels, `format` the lines, `throttle` repetitions.

A log field is an argument of a log call; `format` escapes it and masks secrets.
"""
