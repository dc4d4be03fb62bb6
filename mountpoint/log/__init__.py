"""The log: where lines go, which ones, and what they look like."""
