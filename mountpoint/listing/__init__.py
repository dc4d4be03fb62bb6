"""What is in a directory: its listing, lookups, what is asked for ahead of both."""
