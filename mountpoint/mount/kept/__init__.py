"""`--keep-alive`: a mount outlives its process, because a `keeper` has it, too."""
