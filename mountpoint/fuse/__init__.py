"""The side of the kernel: llfuse (`binding`), a wider channel below it, and the FUSE operations."""
