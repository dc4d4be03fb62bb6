"""A mount outlives its process, because a `keeper` has it, too (`--keep-alive`, the default)."""
