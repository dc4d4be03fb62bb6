"""Writing with --staged-writes, on a local disk first: `writes` is the back end."""
