"""The command line of `mount-s3`: its options, and the `Config` that they make."""
