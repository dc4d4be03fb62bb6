"""Files that are open for reading: `handle`, and `adoption` of handles that are native."""
