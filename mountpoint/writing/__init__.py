"""Writing objects."""
