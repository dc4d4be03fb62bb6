"""Build the Cython fast path. Everything else is declared in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [
            Extension(f"mountpoint.{name}", [f"mountpoint/{name}.pyx"])
            for name in ("_channel", "_fastpath", "_histogram")
        ],
        compiler_directives={"language_level": "3"},
    )
)
