"""Writing by streaming to S3, the default: `writes` is the back end, `writer` a file's states."""
