"""Faults made by hand, each with the unit test that must notice it."""
