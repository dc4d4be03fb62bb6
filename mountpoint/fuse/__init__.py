"""The kernel's side: llfuse (`binding`), a wider channel below it, and the FUSE `operations`."""
