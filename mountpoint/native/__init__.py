"""The memory and the synchronisation of the native data plane, without the interpreter.

`_blocks` is the memory into which bodies arrive, `_arrivals` how threads wait for one. Both are
C-level: other extensions use them without the GIL.
"""
