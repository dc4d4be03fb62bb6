"""The shared cache: blocks of small objects in a bucket that mounts on any number of machines use.

`cache` is what the rest of the program uses; `filling` sends blocks behind the readers' backs.
"""
