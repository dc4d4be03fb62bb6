"""Fuzz one target with atheris: `python -m tests.fuzz NAME [LIBFUZZER OPTIONS] [FOLDERS]`.

New inputs that reach new code go into the first folder.
"""

import importlib
import sys

import atheris

name, *options = sys.argv[1:]
with atheris.instrument_imports(include=["mountpoint", "tests.fuzz.targets"]):
    target = importlib.import_module(f"tests.fuzz.targets.{name}")
atheris.Setup([name, *options], target.read)
atheris.Fuzz()
