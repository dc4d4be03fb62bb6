"""Counters and durations of what a mount does, and their export."""
