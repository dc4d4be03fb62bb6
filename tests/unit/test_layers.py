"""The layer rule: packages import only from lower ones, and libraries only where permitted.

The imports are read from the source, so those in functions and under TYPE_CHECKING count as well.
Modules within a package do not import each other in circles.
"""

import ast
import functools
import graphlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import mountpoint

ROOT = Path(mountpoint.__file__).parent

#: Lowest first: a package imports only from those before it.
PACKAGES = (
    "errors",
    "config",
    "system",
    "log",
    "metrics",
    "native",
    "s3",
    "_fastpath",
    "transfer",
    "cache",
    "listing",
    "read",
    "upload",
    "copy",
    "staging",
    "fs",
    "fuse",
    "mount",
    "checks",
    "cli",
    "ctl",
)

#: Who may import what. structlog is everybody's for `get_logger`; that only `logs` sets it up
#: is tested below.
PLACES = {
    "opentelemetry": {"mountpoint.metrics.export.otlp"},
    "prometheus_client": {"mountpoint.metrics.export.prometheus"},
    "awscrt": {
        "mountpoint.s3.crt.native.connections",
        "mountpoint.s3.crt.native.plane",
        "mountpoint.s3.crt.client",
        "mountpoint.s3.crt.signing",
        "mountpoint.s3.crt.native.symbols",
        "mountpoint.s3.wire.checksum",
    },
    "_awscrt": {"mountpoint.s3.crt.native.symbols"},
    "llfuse": {"mountpoint.fuse.binding"},
    "botocore": {
        "mountpoint.s3.aws.endpoint",
        "mountpoint.s3.aws.credentials",
        "mountpoint.s3.aws.ec2",
        "mountpoint.s3.aws.profile",
        "mountpoint.s3.aws.settings",
    },
    "click": {
        "mountpoint.cli.main",
        "mountpoint.cli.command",
        "mountpoint.ctl.cache.command",
        "mountpoint.ctl.cleanup.command",
        "mountpoint.ctl.group",
        "mountpoint.ctl.log",
        "mountpoint.ctl.main",
        "mountpoint.ctl.stats.command",
        "mountpoint.ctl.warm.command",
        "mountpoint.checks.report",
    },
    "errno": {"mountpoint.errors", "mountpoint.fuse.operations"},
}
EVERYWHERE = {"structlog"}

#: Pure modules decide from values alone: no locks, clocks, environment or I/O.
PURE = (
    "mountpoint.listing.tree",
    "mountpoint.listing.pages",
    "mountpoint.listing.walk_detector",
    "mountpoint.listing.flat",
    "mountpoint.listing.split_points",
    "mountpoint.read.patterns",
    "mountpoint.read.readahead",
    "mountpoint.transfer.concurrency",
    "mountpoint.transfer.hedging",
    "mountpoint.s3.wire.reading",
    "mountpoint.s3.wire.writing",
    "mountpoint.s3.lost_answers",
    "mountpoint.s3.crt.errors",
    "mountpoint.s3.crt.sizes",
    "mountpoint.s3.wire.checksum",
    "mountpoint.upload.parts",
    "mountpoint.staging.range_set",
    "mountpoint.staging.extents",
    "mountpoint.staging.upload_plan",
    "mountpoint.fs.posix_metadata",
    "mountpoint.cli.fstab",
    "mountpoint.log.filter",
    "mountpoint.metrics.export.families",
    "mountpoint.ctl.words",
    "mountpoint.ctl.stats.prices",
    "mountpoint.ctl.stats.rates",
    "mountpoint.ctl.stats.table",
)
IMPURE = {"os", "io", "time", "threading", "socket", "subprocess", "select", "signal", "pathlib"}


def module_name(path: Path) -> str:
    """Return the dotted name of a file's module."""
    parts = ("mountpoint", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted(path for path in ROOT.rglob("*") if path.suffix in (".py", ".pyi", ".pyx", ".pxd"))
MODULES = {module_name(path) for path in SOURCES}


def imports(path: Path) -> Iterator[str]:
    """Yield the names that a source file imports; both "a" and "a.b" for `from a import b`."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".pyx", ".pxd"):  # not Python: put each import on one line and search
        text = re.sub(
            r"import\s*\(([^()]*)\)", lambda found: "import " + " ".join(found[1].split()), text
        )
        pattern = r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+)?c?import[ \t]+([\w., \t]+)"
        for source, names in re.findall(pattern, text, re.MULTILINE):
            yield from [source] if source else []
            for name in names.split(","):
                if name.strip():
                    word = name.split()[0]
                    yield f"{source}.{word}" if source else word
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Return the names that a source file imports."""
    return frozenset(imports(path))


def own_imports(path: Path) -> set[str]:
    """Return our modules that a file imports."""
    return {name for name in imported(path) if name in MODULES} - {module_name(path)}


def libraries(path: Path) -> set[str]:
    """Return the top-level packages of others that a file imports."""
    return {name.partition(".")[0] for name in imported(path)} - {"mountpoint"}


def package_of(name: str) -> str:
    """Return the package of a module, or the module itself without one."""
    return name.split(".")[1]


def test_every_package_has_a_row() -> None:
    """A new package needs a row in the table."""
    assert {package_of(name) for name in MODULES if name != "mountpoint"} == set(PACKAGES)
    assert len(set(PACKAGES)) == len(PACKAGES)


def test_imports_come_from_packages_below() -> None:
    """No package imports from a higher one."""
    wrong = []
    for path in SOURCES:
        name = module_name(path)
        row = len(PACKAGES) if name == "mountpoint" else PACKAGES.index(package_of(name))
        others = own_imports(path) - {"mountpoint"}
        higher = {each for each in others if PACKAGES.index(package_of(each)) > row}
        wrong += [(name, each) for each in sorted(higher)]
    assert wrong == []


def test_no_circles() -> None:
    """No module imports itself indirectly."""
    needs: dict[str, set[str]] = {}
    for path in SOURCES:
        own = {
            each
            for each in own_imports(path)
            if not (ROOT.parent / each.replace(".", "/")).is_dir()
        }
        needs.setdefault(module_name(path), set()).update(own)
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


def test_packages_are_small() -> None:
    """A package has at most a dozen modules, so that a reader can survey it."""
    modules = {path.with_suffix("") for path in SOURCES if path.stem != "__init__"}
    sizes = Counter(path.parent for path in modules)
    assert {path.name: size for path, size in sizes.items() if size > 12} == {}


def test_libraries_stay_in_their_places() -> None:
    """Each third-party library, and errno, is imported only where the table permits it."""
    used = {(module_name(path), library) for path in SOURCES for library in libraries(path)}
    assert sorted((name, each) for name, each in used if name not in PLACES.get(each, {name})) == []


def test_no_library_is_without_a_place() -> None:
    """All libraries except Python's, our own and Cython's are in the table."""
    python = sys.stdlib_module_names | {"cython", "cpython", "libc", "posix"}
    used = set().union(*(libraries(path) for path in SOURCES))
    assert sorted(used - python - EVERYWHERE - set(PLACES)) == []


def test_only_logs_configures_structlog() -> None:
    """Other modules use only structlog's get_logger and is_configured."""
    allowed = {"get_logger", "is_configured"}
    for path in SOURCES:
        if module_name(path) != "mountpoint.log.setup":
            used = set(re.findall(r"\bstructlog\.(\w+)", path.read_text(encoding="utf-8")))
            assert used <= allowed, path.name


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_have_no_means_to_be_otherwise(name: str) -> None:
    """Policy imports nothing that waits, reads a clock or does I/O."""
    paths = [path for path in SOURCES if module_name(path) == name]
    assert paths
    for path in paths:
        assert sorted(libraries(path) & IMPURE) == []


def test_the_reader_of_cython_sources_sees_all_forms(tmp_path: Path) -> None:
    """Imports and cimports of a .pyx are found, with and without "from", also indented."""
    path = tmp_path / "x.pyx"
    path.write_text(
        "# import nothing\n"
        "import os, errno\n"
        "cimport cython\n"
        "from libc.string cimport memcpy\n"
        "from mountpoint.errors import (\n    BadAnswer,\n    S3Error,\n)\n"
        "def f():\n    from mountpoint.listing import tree as t, flat\n"
    )
    assert set(imports(path)) >= {
        "os",
        "errno",
        "cython",
        "libc.string",
        "libc.string.memcpy",
        "mountpoint.errors.S3Error",
        "mountpoint.listing.tree",
        "mountpoint.listing.flat",
    }
    assert "nothing" not in set(imports(path))
