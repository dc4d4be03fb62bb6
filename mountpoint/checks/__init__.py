"""`mount-s3 --check`: all that mounting needs is looked at, and nothing is mounted."""
