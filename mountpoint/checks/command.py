"""`mount-s3 --check`: the list of checks, in order, and the run."""

import io
import os
import sys
from dataclasses import replace

from mountpoint.checks import bucket, machine, network, settings
from mountpoint.checks.checklist import Check, go_through
from mountpoint.checks.report import bar, clean_by, write_json, write_text
from mountpoint.checks.subject import Subject
from mountpoint.checks.throughput import throughput
from mountpoint.config import Config
from mountpoint.log.format import Redactor
from mountpoint.log.setup import configure_log, crt_log_level
from mountpoint.s3.crt.client import enable_crt_log
from mountpoint.system import memory

#: In the order in which mounting needs them. docs/check.md lists the names.
CHECKS: tuple[Check[Subject], ...] = (
    Check("fuse_device", machine.fuse_device),
    Check("fuse_library", machine.fuse_library),
    Check("kernel", machine.kernel),
    Check("data_plane", machine.data_plane),
    Check("permissions", machine.permissions),
    Check("fusermount", machine.fusermount),
    Check("allow_other", machine.allow_other),
    Check("directory", machine.directory),
    Check("staging", machine.staging),
    Check("cache", machine.cache),
    Check("log", machine.log),
    Check("journal", machine.uploads_journal),
    Check("configuration", settings.configuration),
    Check("credentials", settings.credentials, needs=("configuration",)),
    Check("region", settings.region, needs=("configuration",)),
    Check("endpoint", settings.endpoint, needs=("region",)),
    Check("dns", network.dns, needs=("endpoint",)),
    Check("connection", network.connection, needs=("dns",)),
    Check("tls", network.tls, needs=("connection",)),
    Check("clock", network.clock, needs=("tls",)),
    Check("bucket", bucket.bucket, needs=("credentials", "tls")),
    Check("list", bucket.listing, needs=("bucket",)),
    Check("read", bucket.read, needs=("list",)),
    Check("write", bucket.write, needs=("bucket",)),
    Check("cache_bucket", bucket.cache_bucket, needs=("bucket",)),
    Check("throughput", throughput, needs=("read",)),
)


def run(config: Config, *, as_json: bool) -> int:
    """Run all checks and report; return the exit code: 0, or 1 if any check failed.

    Leaves nothing behind, even if interrupted.
    """
    memory.keep_freed(config.read.memory_bytes)  # like a mount: it is faster
    configure_log(replace(config.log, directory=None, foreground=True))
    crt_level = crt_log_level(config.log)
    if crt_level is not None:
        enable_crt_log(crt_level)
    if isinstance(sys.stdout, io.TextIOWrapper):  # the terminal may lack a key's characters
        sys.stdout.reconfigure(errors="backslashreplace")
    clean = clean_by(Redactor.from_environment(os.environ))
    subject = Subject(os.environ, bar, config)
    results = go_through(CHECKS, subject)
    try:
        if as_json:
            good = write_json(config, results, clean)
        else:
            good = write_text(config.bucket, results, clean)
    finally:
        subject.close()
    return 0 if good else 1
