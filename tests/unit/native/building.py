"""Build the test's own extension: the C functions of `mountpoint.native`, for Python."""

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
SETUP = """
from setuptools import Extension, setup
from Cython.Build import cythonize
extension = Extension("_probe", ["_probe.pyx"])
setup(name="probe", ext_modules=cythonize(
    [extension], include_path=[{root!r}], compiler_directives={{"language_level": 3}}, quiet=True))
"""


@functools.cache
def probe() -> Any:
    """Return the extension; the first call builds it, which takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "_probe.pyx").write_bytes(Path(__file__).with_name("_probe.pyx").read_bytes())
        Path(folder, "setup.py").write_text(SETUP.format(root=str(ROOT)))
        # Without optimization it is built in half of the time. A sanitizer is not for the compiler.
        env = os.environ | {"CFLAGS": os.environ.get("CFLAGS", "") + " -O0"}
        env.pop("LD_PRELOAD", None)
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=folder,
            env=env,
            check=True,
        )
        (library,) = Path(folder).glob("_probe.*.so")
        spec = importlib.util.spec_from_file_location("_probe", library)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
