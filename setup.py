"""Build the Cython fast path. Everything else is declared in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [Extension("mountpoint._fastpath", ["mountpoint/_fastpath.pyx"])],
        compiler_directives={"language_level": "3"},
    )
)
