"""`mount-s3ctl cleanup`: `command`; which uploads it aborts (`pending`)."""
