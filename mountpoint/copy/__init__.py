"""Copies made by the server: of objects that are renamed, or that get new metadata."""
