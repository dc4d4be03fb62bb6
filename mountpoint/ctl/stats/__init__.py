"""`mount-s3ctl stats`: a mount's activity as a table that is redrawn at an interval."""
