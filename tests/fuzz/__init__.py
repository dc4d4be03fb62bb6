"""Fuzzing: everything that reads bytes of others is fed with mutated ones."""
