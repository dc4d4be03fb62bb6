"""`mount-s3ctl stats`: what a mount does, as a table that is drawn again and again."""
