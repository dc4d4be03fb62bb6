"""One module for each reader of foreign bytes: `read(data)` raises nothing, or has found a fault.

The errors that a reader documents are caught there; its promises are asserted. A target's corpus is
`corpus/NAME`.
"""
