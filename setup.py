"""Build the extensions. Everything else is in pyproject.toml."""

import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext  # Cython's, where Cython is installed
from setuptools.errors import CompileError

PYTHON = f"python{sysconfig.get_python_version()}"
NEEDED = {"errno.h": "a working C compiler", "Python.h": f"{PYTHON}'s headers"}
MESSAGE = """
mount-s3 cannot be built: this machine lacks {missing}
Install what it and llfuse are built with, then try again:
  Debian, Ubuntu:        apt install gcc libc6-dev {python}-dev pkg-config libfuse-dev
  Amazon Linux, Fedora:  dnf install gcc {python}-devel pkgconf-pkg-config fuse-devel
Or install a package or wheels, without a compiler: docs/install.md
"""


class BuildExtensions(build_ext):
    def build_extensions(self):
        """Build them, once the compiler has compiled a line with each header."""
        with TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            for header, missing in NEEDED.items():
                source.write_text(f"#include <{header}>\n")
                try:
                    self.compiler.compile([str(source)], folder, include_dirs=self.include_dirs)
                except CompileError:
                    raise SystemExit(MESSAGE.format(missing=missing, python=PYTHON)) from None
        super().build_extensions()


setup(
    ext_modules=[
        Extension(".".join(path.with_suffix("").parts), [str(path)])
        for path in sorted(Path("mountpoint").rglob("*.pyx"))
    ],
    cmdclass={"build_ext": BuildExtensions},
)
