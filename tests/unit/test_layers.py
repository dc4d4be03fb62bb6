"""The layer rule: a module imports only from rows above it, and each library has its place.

Imports are read from the source, so that those inside functions and under TYPE_CHECKING
count as well. A module without a row fails: deciding where it stands is part of adding it.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mountpoint

ROOT = Path(mountpoint.__file__).parent

#: Top to bottom. `tree` takes a ListPage apart, so it stands below the page's definition.
LAYERS = (
    "mountpoint",  # the version
    "mountpoint.s3",  # packages are empty
    "mountpoint.export",
    "mountpoint.reading",
    "mountpoint.writing",
    "mountpoint.staging",
    "mountpoint.listing",
    "mountpoint.checks",
    "mountpoint.errors",
    "mountpoint.config",
    "mountpoint.metrics",
    "mountpoint._histogram",
    "mountpoint.processes",
    "mountpoint.meters",
    "mountpoint.mountinfo",
    "mountpoint.cgroup",
    "mountpoint.spill",
    "mountpoint.s3.kept",
    "mountpoint.s3.client",
    "mountpoint.tree",
    "mountpoint.listing.pages",
    "mountpoint.listing.walk",
    "mountpoint.listing.flat",
    "mountpoint.listing.ranges",
    "mountpoint.window",
    "mountpoint.budget",
    "mountpoint.flight",
    "mountpoint.memory",
    "mountpoint.s3.safexml",
    "mountpoint.s3.refusal",
    "mountpoint.s3.wire",
    "mountpoint.s3.write_wire",
    "mountpoint.s3.crt_errors",
    "mountpoint.s3.sizes",
    "mountpoint.s3.body",
    "mountpoint.s3.profile",
    "mountpoint.s3.surroundings",
    "mountpoint.s3.instance",
    "mountpoint.s3.endpoint",
    "mountpoint.s3.credentials",
    "mountpoint.s3.proxy",
    "mountpoint.s3.probe",
    "mountpoint.s3.retry",
    "mountpoint.s3.abilities",
    "mountpoint.s3.checksum",
    "mountpoint.s3.crt_threads",
    "mountpoint.s3.exchange",
    "mountpoint.s3.crt_log",
    "mountpoint.s3.crt",
    "mountpoint.s3.connect",
    "mountpoint._fastpath",
    "mountpoint.reading.expectation",
    "mountpoint.reading.pace",
    "mountpoint.reading.whole",
    "mountpoint.reading.stream",
    "mountpoint.reading.ahead",
    "mountpoint.reading.streams",
    "mountpoint.writing.parts",
    "mountpoint.writing.gathering",
    "mountpoint.writing.content_types",
    "mountpoint.writing.journal",
    "mountpoint.writing.errands",
    "mountpoint.writing.source",
    "mountpoint.writing.multipart",
    "mountpoint.writing.completion",
    "mountpoint.writing.sequential",
    "mountpoint.writing.upload",
    "mountpoint.writing.appending",
    "mountpoint.writing.uploads",
    "mountpoint.writing.many",
    "mountpoint.writing.trial",
    "mountpoint.writing.proof",
    "mountpoint.writing.copies",
    "mountpoint.writing.selfcopy",
    "mountpoint.listing.recent",
    "mountpoint.listing.siblings",
    "mountpoint.listing.lookups",
    "mountpoint.listing.runs",
    "mountpoint.listing.ahead",
    "mountpoint.listing.directory",
    "mountpoint.staging.ranges",
    "mountpoint.staging.extents",
    "mountpoint.staging.plan",
    "mountpoint.staging.journal",
    "mountpoint.staging.leftovers",
    "mountpoint.staging.area",
    "mountpoint.staging.local",
    "mountpoint.staging.aside",
    "mountpoint.staging.content",
    "mountpoint.staging.staged",
    "mountpoint.inodes",
    "mountpoint.key_locks",
    "mountpoint.handles",
    "mountpoint.local",
    "mountpoint.readers",
    "mountpoint.attributes",
    "mountpoint.keeping",
    "mountpoint.heads",
    "mountpoint.names",
    "mountpoint.write_opener",
    "mountpoint.changes",
    "mountpoint.staged_changes",
    "mountpoint.held",
    "mountpoint.directories",
    "mountpoint.renames",
    "mountpoint.opener",
    "mountpoint.filesystem",
    "mountpoint._channel",
    "mountpoint.fuse",
    "mountpoint.refusals",
    "mountpoint.operations",
    "mountpoint.kernel",
    "mountpoint.descriptor",
    "mountpoint.requirements",
    "mountpoint.log_filter",
    "mountpoint.log_render",
    "mountpoint.logs",
    "mountpoint.control",
    "mountpoint.answers",
    "mountpoint.signals",
    "mountpoint.notify",
    "mountpoint.daemon",
    "mountpoint.export.families",
    "mountpoint.export.health",
    "mountpoint.export.lines",
    "mountpoint.export.otlp",
    "mountpoint.export.prometheus",
    "mountpoint.export.exports",
    "mountpoint.mount",
    "mountpoint.checks.checklist",
    "mountpoint.checks.subject",
    "mountpoint.checks.words",
    "mountpoint.checks.machine",
    "mountpoint.checks.place",
    "mountpoint.checks.network",
    "mountpoint.checks.bucket",
    "mountpoint.checks.throughput",
    "mountpoint.fstab",
    "mountpoint.command",
    "mountpoint.settings",
    "mountpoint.checks.report",
    "mountpoint.checks.command",
    "mountpoint.cli",
    "mountpoint.ctl",
    "mountpoint.ctl.words",
    "mountpoint.ctl.terminal",
    "mountpoint.ctl.group",
    "mountpoint.ctl.pending",
    "mountpoint.ctl.cleanup",
    "mountpoint.ctl.mounts",
    "mountpoint.ctl.progress",
    "mountpoint.ctl.prices",
    "mountpoint.ctl.rates",
    "mountpoint.ctl.table",
    "mountpoint.ctl.screen",
    "mountpoint.ctl.stats",
    "mountpoint.ctl.status",
    "mountpoint.ctl.log",
    "mountpoint.ctl.refresh",
    "mountpoint.ctl.unmount",
    "mountpoint.ctl.main",
)

#: Who may import what. structlog is everybody's for `get_logger`; that only `logs` sets it up
#: is tested below.
PLACES = {
    "opentelemetry": {"mountpoint.export.otlp"},
    "prometheus_client": {"mountpoint.export.prometheus"},
    "awscrt": {"mountpoint.s3.crt", "mountpoint.s3.checksum"},
    "llfuse": {"mountpoint.fuse"},
    "botocore": {
        "mountpoint.s3.endpoint",
        "mountpoint.s3.credentials",
        "mountpoint.s3.instance",
        "mountpoint.s3.profile",
        "mountpoint.s3.surroundings",
    },
    "click": {
        "mountpoint.cli",
        "mountpoint.command",
        "mountpoint.ctl.cleanup",
        "mountpoint.ctl.group",
        "mountpoint.ctl.log",
        "mountpoint.ctl.main",
        "mountpoint.ctl.stats",
        "mountpoint.checks.report",
    },
    "errno": {"mountpoint.errors", "mountpoint.operations"},
}
EVERYWHERE = {"structlog"}

#: Pure modules decide from values alone: no locks, clocks, environment or I/O.
PURE = (
    "mountpoint.tree",
    "mountpoint.listing.pages",
    "mountpoint.listing.walk",
    "mountpoint.listing.flat",
    "mountpoint.listing.ranges",
    "mountpoint.window",
    "mountpoint.flight",
    "mountpoint.s3.kept",
    "mountpoint.s3.wire",
    "mountpoint.s3.write_wire",
    "mountpoint.s3.crt_errors",
    "mountpoint.s3.sizes",
    "mountpoint.s3.checksum",
    "mountpoint.writing.parts",
    "mountpoint.staging.ranges",
    "mountpoint.staging.extents",
    "mountpoint.staging.plan",
    "mountpoint.fstab",
    "mountpoint.log_filter",
    "mountpoint.export.families",
    "mountpoint.ctl.words",
    "mountpoint.ctl.prices",
    "mountpoint.ctl.rates",
    "mountpoint.ctl.table",
)
IMPURE = {"os", "io", "time", "threading", "socket", "subprocess", "select", "signal", "pathlib"}


def module_name(path: Path) -> str:
    """Return the dotted name of the module in a file."""
    parts = ("mountpoint", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted(path for path in ROOT.rglob("*") if path.suffix in (".py", ".pyi", ".pyx", ".pxd"))
MODULES = {module_name(path) for path in SOURCES}


def imports(path: Path) -> Iterator[str]:
    """Yield the names that a source file imports; of `from a import b` both "a" and "a.b"."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".pyx", ".pxd"):  # not Python: put each import on one line and look
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


def own_imports(path: Path) -> set[str]:
    """Return the modules of ours that a file imports."""
    return {name for name in imports(path) if name in MODULES} - {module_name(path)}


def libraries(path: Path) -> set[str]:
    """Return the top-level packages of others that a file imports."""
    return {name.partition(".")[0] for name in imports(path)} - {"mountpoint"}


def test_every_module_has_a_row() -> None:
    """A new module is put into the table by whoever writes it."""
    assert sorted(MODULES - set(LAYERS)) == []
    assert len(set(LAYERS)) == len(LAYERS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_come_from_rows_above(path: Path) -> None:
    """No module imports from its own row's others or from below, so there are no cycles."""
    row = LAYERS.index(module_name(path))
    assert sorted(name for name in own_imports(path) if LAYERS.index(name) > row) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_libraries_stay_in_their_places(path: Path) -> None:
    """Each third-party library, and errno, is imported where the table says and nowhere else."""
    for library in libraries(path):
        assert module_name(path) in PLACES.get(library, {module_name(path)}), library


def test_no_library_is_without_a_place() -> None:
    """Whatever is neither Python's nor ours, nor Cython's, is in the table."""
    python = sys.stdlib_module_names | {"cython", "cpython", "libc", "posix"}
    used = set().union(*(libraries(path) for path in SOURCES))
    assert sorted(used - python - EVERYWHERE - set(PLACES)) == []


def test_only_logs_configures_structlog() -> None:
    """Elsewhere structlog is get_logger, and the question whether it is configured."""
    allowed = {"get_logger", "is_configured"}
    for path in SOURCES:
        if module_name(path) != "mountpoint.logs":
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
        "def f():\n    from mountpoint import tree as t, window\n"
    )
    assert set(imports(path)) >= {
        "os",
        "errno",
        "cython",
        "libc.string",
        "libc.string.memcpy",
        "mountpoint.errors.S3Error",
        "mountpoint.tree",
        "mountpoint.window",
    }
    assert "nothing" not in set(imports(path))
