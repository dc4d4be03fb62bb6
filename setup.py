"""Build the extensions, or say what is missing for that. Everything else is in pyproject.toml.

pip asks for the metadata of this package first (`dist_info`), before it turns to llfuse, whose
build would stop with no more than pkg-config's own words. So all that the two need is looked for
there, and said at once; pip shows it at its end.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext  # Cython's, where that is installed
from setuptools.command.dist_info import dist_info

PYTHON = f"python{sysconfig.get_python_version()}"

# What is missing, and its packages: Debian's and Ubuntu's, Amazon Linux's and Fedora's.
COMPILER = ("a C compiler that works", "gcc libc6-dev", "gcc")
PYTHON_H = (f"Python.h, the headers of {PYTHON}", f"{PYTHON}-dev", f"{PYTHON}-devel")
PKG_CONFIG = ("pkg-config, by which llfuse finds libfuse", "pkg-config", "pkgconf-pkg-config")
LIBFUSE = ("libfuse 2.9 with its headers (fuse.h), for llfuse", "libfuse-dev", "fuse-devel")


def missing_for_us():
    """Return what our own extensions cannot be compiled without."""
    if not compiles("errno.h"):
        return [COMPILER, *([] if python_h_exists() else [PYTHON_H])]
    return [] if compiles("Python.h") else [PYTHON_H]


def missing_for_llfuse():
    """Return what llfuse cannot be built without; nothing, where it is installed already."""
    # An isolated build does not see what is installed where pip installs, but knows the place.
    places = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *sys.path]
    if any(distributions(name="llfuse", path=places)):
        return []
    try:
        found = subprocess.run(["pkg-config", "--exists", "fuse >= 2.8"], check=False)
    except OSError:
        return [PKG_CONFIG, LIBFUSE]
    return [LIBFUSE] if found.returncode else []


def python_h_exists():
    return os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))


def compiles(header):
    variables = ("CPPFLAGS", "CFLAGS")
    command = [
        *shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"),
        *(flag for name in variables for flag in shlex.split(os.environ.get(name, ""))),
        *(f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")),
        *("-x", "c", "-fsyntax-only", "-"),
    ]
    try:
        done = subprocess.run(
            command, input=f"#include <{header}>\n", text=True, capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def refuse(missing):
    if missing:
        what, debian, fedora = zip(*missing, strict=True)
        raise SystemExit(
            "\nmount-s3 cannot be built, because this machine lacks\n"
            + "".join(f"  - {one}\n" for one in what)
            + "Install them, then try again:\n"
            + f"  Debian, Ubuntu:        apt install {' '.join(debian)}\n"
            + f"  Amazon Linux, Fedora:  dnf install {' '.join(fedora)}\n"
            + "Or install it from wheels, which need none of them: docs/install.md\n"
        )


class Metadata(dist_info):
    """What pip begins with."""

    def run(self):
        refuse(missing_for_us() + missing_for_llfuse())
        super().run()


class Build(build_ext):
    """What other tools may begin with; they leave llfuse to pip."""

    def run(self):
        refuse(missing_for_us())
        super().run()


setup(
    ext_modules=[
        Extension(".".join(path.with_suffix("").parts), [str(path)])
        for path in sorted(Path("mountpoint").rglob("*.pyx"))
    ],
    cmdclass={"dist_info": Metadata, "build_ext": Build},
)
