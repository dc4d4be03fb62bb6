"""What all transfers share: the memory budget, bytes in flight, durations of requests."""
