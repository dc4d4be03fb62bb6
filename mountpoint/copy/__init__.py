"""Copies by the server: moving objects (`objects`), and changing their metadata (`metadata`)."""
