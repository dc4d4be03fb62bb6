"""Each module has the test file of its name, or a row that names the file with its tests.

The test file of `mountpoint/read/stream.py` is `tests/unit/read/test_stream.py`, and that of
`mountpoint/fuse/_channel.pyx` is `tests/unit/fuse/test_channel.py`.
"""

from pathlib import Path

import mountpoint

PACKAGE = Path(mountpoint.__file__).parent
TESTS = PACKAGE.parent / "tests"

#: The modules without a file of their own, by the file that tests them. Rows of files in `mount`
#: and `server` are modules that only connect others, the kernel or a server.
TESTED_IN = {
    "unit/cli/test_main.py": "cli/command cli/settings config log/words",
    "unit/fuse/test_operations.py": "errors",
    "unit/fuse/test_listings.py": "fuse/entries",
    "mount/test_cache.py": "cache/block_cache cache/cached_object",
    "unit/cache/test_filling.py": "cache/write_queue",
    "unit/cache/blocks/test_files.py": "cache/blocks/_format cache/blocks/_lanes",
    "unit/cache/shared/test_cache.py": "cache/shared/filling",
    "unit/ctl/cache/test_command.py": "ctl/cache/checking ctl/cache/hits ctl/cache/inventory",
    "unit/ctl/warm/test_warming.py": "ctl/warm/pace ctl/warm/state ctl/warm/tally",
    "unit/ctl/cleanup/test_command.py": "ctl/main ctl/cleanup/pending",
    "unit/ctl/test_stats.py": "ctl/mounts ctl/stats/command ctl/stats/screen",
    "unit/ctl/test_progress.py": "ctl/terminal",
    "mount/test_ctl.py": "ctl/refresh ctl/unmount",
    "unit/fs/test_filesystem.py": (
        "fs/directories fs/open fs/reads/handle fs/writes/backend fs/writes/context"
    ),
    "unit/fs/test_prepared.py": "fs/reads/adoption",
    "unit/fs/test_refresh.py": "fs/caches",
    "unit/fs/writes/test_sharing.py": (
        "fs/writes/readers fs/writes/reopen fs/writes/unlink fs/writes/streamed/content "
        "fs/writes/streamed/files"
    ),
    "unit/fs/writes/test_staged_names.py": "fs/writes/staged/writer fs/writes/staged/writes",
    "unit/fs/writes/streamed/test_writes.py": (
        "fs/writes/streamed/handle fs/writes/streamed/open fs/writes/streamed/writer"
    ),
    "unit/fs/test_setattr.py": "fs/writes/streamed/attributes",
    "mount/test_prepared.py": "fuse/_opens",
    "mount/test_channel.py": "fuse/_reads fuse/binding fuse/structures",
    "mount/test_keep_alive.py": (
        "ctl/upgrade fuse/_survival mount/kept/link mount/kept/upgrade mount/kept/worker"
    ),
    "unit/fs/test_resolver.py": "listing/single_lookup",
    "mount/test_life.py": "mount/build",
    "server/test_crt.py": "s3/client s3/crt/client s3/crt/signing",
    "server/test_feature_probe.py": "s3/connect",
    "unit/s3/crt/native/test_memory.py": (
        "s3/crt/native/_answers s3/crt/native/_gets s3/crt/native/_requests s3/crt/native/plane"
    ),
    "unit/s3/crt/native/test_connections.py": (
        "s3/crt/native/_functions s3/crt/native/_http s3/crt/native/_sending"
        " s3/crt/native/_templates"
    ),
    "unit/s3/wire/test_writing.py": "s3/crt/body",
    "unit/staging/test_staged_file.py": "staging/aside staging/content staging/sending",
    "unit/staging/test_area.py": "staging/recovery",
    "unit/copy/test_objects.py": "copy/metadata upload/copy_probe",
    "unit/upload/test_upload.py": (
        "upload/completion upload/multipart upload/sequential upload/uploads"
    ),
    "unit/upload/test_upload_copy.py": "upload/source",
}


def own_file(module: str) -> Path:
    """Return the path of a module's own test file."""
    package, _, name = module.rpartition("/")
    return TESTS / "unit" / package / f"test_{name.lstrip('_')}.py"


def modules() -> set[str]:
    """Return the paths of all modules, without suffix."""
    sources = [path for path in PACKAGE.rglob("*.py*") if path.suffix in (".py", ".pyx")]
    names = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in sources}
    return {name for name in names if not name.endswith("__init__")}


def rows() -> list[str]:
    """Return the modules in the table."""
    return [module for each in TESTED_IN.values() for module in each.split()]


def test_every_module_is_tested_somewhere() -> None:
    """A new module has its own test file, or a row."""
    without = {module for module in modules() if not own_file(module).exists()}
    assert sorted(without - set(rows())) == []


def test_no_row_is_stale() -> None:
    """Each row names a module without a test file of its own, once, and a file that exists."""
    assert sorted(set(rows()) - modules()) == []
    assert [module for module in rows() if own_file(module).exists()] == []
    assert len(set(rows())) == len(rows())
    assert [file for file in TESTED_IN if not (TESTS / file).exists()] == []
