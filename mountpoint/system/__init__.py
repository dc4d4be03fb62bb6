"""Facts of the host: memory, control groups, mounts, processes, temporary files."""
