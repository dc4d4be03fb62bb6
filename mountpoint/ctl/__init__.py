"""`mount-s3ctl`: what is done about mounts from outside of them."""
