"""Build the test's own extension: the C functions of `mountpoint.native`, for Python."""

import fcntl
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
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
    """Return the extension. One process builds it, which takes seconds; others wait for that."""
    source = Path(__file__).with_name("_probe.pyx").read_bytes()
    layouts = [
        path.read_bytes()
        for package in ("native", "fuse")
        for path in sorted((ROOT / "mountpoint" / package).glob("*.pxd"))
    ]
    flags = os.environ.get("CFLAGS", "")
    digest = hashlib.sha256(b"".join([source, *layouts, flags.encode(), sys.version.encode()]))
    folder = ROOT / ".state" / "probe" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("_probe.*.so")):
            (folder / "_probe.pyx").write_bytes(source)
            (folder / "setup.py").write_text(SETUP.format(root=str(ROOT)))
            # Without optimization it takes half of the time. A sanitizer is not for the compiler.
            env = os.environ | {"CFLAGS": f"{flags} -O0"}
            env.pop("LD_PRELOAD", None)
            subprocess.run(
                [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
                cwd=folder,
                env=env,
                check=True,
            )
    (library,) = folder.glob("_probe.*.so")
    spec = importlib.util.spec_from_file_location("_probe", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
