"""The command line of `mount-s3`: the table of its options, and the mount.

Names, defaults and meanings of the options are those of AWS's mount-s3 (--help and
doc/CONFIGURATION.md there); README.md says which options are our own. There is one option table, in
click's form; `command` parses it, and `settings` makes a `Config` from the result: an option sets
the field of its name (`config`), and the table names the field where the two differ.

* Exit codes: 0 after a mount in the background, an unmount in the foreground, or a check. 1 for
  every MountError, including values out of range and contradictions. 2 for errors that click finds
  (an unknown option, a missing argument, a word instead of a number), as in AWS's mount-s3.
* Nothing slow is imported here, so `--help` and wrong options answer at once. Modules that start
  threads are imported after the fork (`mount/daemon`).
"""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import click

from mountpoint import __version__
from mountpoint.cli.command import (
    MountCommand,
    directories,
    files,
    number_of,
    octal,
    option,
    profiles,
    time_to_live,
    unless_checking,
)
from mountpoint.cli.settings import make_config
from mountpoint.config import MIB, Config
from mountpoint.errors import MountError
from mountpoint.fuse.fd_mount import claim
from mountpoint.log.format import printable
from mountpoint.log.setup import is_in_memory_only, log_location
from mountpoint.log.words import display_name
from mountpoint.mount import daemon, dead_mount, preflight
from mountpoint.mount.kept import keeper, launch, stored
from mountpoint.system import sd_notify

BUCKET = "Bucket options"
CREDENTIALS = "AWS credentials options"
MOUNT = "Mount options"
WRITING = "Writing options"
CLIENT = "Client options"
OBJECTS = "New object options"
CACHING = "Caching options"
METRICS = "Metrics options"
LOGGING = "Logging options"


@click.command(
    cls=MountCommand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    options_metavar="[OPTIONS]",
)
@click.argument("bucket", metavar="BUCKET")
@click.argument(
    "directory",
    metavar="DIRECTORY",
    required=False,
    callback=unless_checking,
    shell_complete=directories,
)
@option(
    BUCKET,
    "--prefix",
    metavar="PREFIX",
    help="Mount only the keys below this prefix; it must end in '/'.",
)
@option(BUCKET, "--region", metavar="REGION", help="Region of the bucket.  [default: detected]")
@option(
    BUCKET,
    "--endpoint-url",
    metavar="URL",
    help="URL of the S3 server, such as https://minio.example.com.  [default: the region's]",
)
@option(
    BUCKET,
    "--force-path-style",
    is_flag=True,
    help="Put the bucket's name into the URL's path, not its host name.",
)
@option(BUCKET, "--dual-stack", is_flag=True, help="Use endpoints that have IPv6 and IPv4.")
@option(BUCKET, "--transfer-acceleration", is_flag=True, help="Use S3 Transfer Acceleration.")
@option(
    BUCKET, "--requester-pays", is_flag=True, help="Pay for requests to buckets of other accounts."
)
@option(
    BUCKET,
    "--expected-bucket-owner",
    "expected_owner",
    metavar="ID",
    help="Fail if another account owns the bucket.",
)
@option(
    BUCKET,
    "--bucket-type",
    type=click.Choice(["general-purpose", "directory"]),
    metavar="general-purpose|directory",
    label="--bucket-type TYPE",
    help="Type of the bucket: general-purpose or directory.  [default: by name and endpoint]",
)
@option(
    CREDENTIALS, "--no-sign-request", is_flag=True, help="Do not sign requests; use no credentials."
)
@option(
    CREDENTIALS,
    "--profile",
    metavar="PROFILE",
    help="AWS profile to take credentials and settings from.",
    shell_complete=profiles,
)
@option(MOUNT, "--read-only", is_flag=True, help="Mount read-only.")
@option(MOUNT, "--auto-unmount", is_flag=True, help="Unmount when mount-s3 exits or is killed.")
@option(
    MOUNT,
    "--keep-alive",
    is_flag=True,
    help="Restart mount-s3 if it dies: open files and programs go on, without unmounting. "
    "This is the default without --auto-unmount.",
)
@option(
    MOUNT,
    "--no-keep-alive",
    is_flag=True,
    help="If mount-s3 dies, do not restart it; the mount stays dead until it is unmounted.",
)
@option(MOUNT, "--allow-root", is_flag=True, help="Let root access the mount, too.")
@option(
    MOUNT,
    "--allow-other",
    is_flag=True,
    help="Let all users and root access the mount. Unless you are root, this option and "
    "--allow-root need user_allow_other in /etc/fuse.conf.",
)
@option(
    MOUNT,
    "--uid",
    type=int,
    metavar="UID",
    help="Show files as owned by this user.  [default: you]",
)
@option(
    MOUNT,
    "--gid",
    type=int,
    metavar="GID",
    help="Show files as owned by this group.  [default: yours]",
)
@option(
    MOUNT,
    "--dir-mode",
    type=octal,
    metavar="MODE",
    help="Directory permissions.  [default: 0755]",
)
@option(MOUNT, "--file-mode", type=octal, metavar="MODE", help="File permissions.  [default: 0644]")
@option(
    MOUNT,
    "--inode32",
    is_flag=True,
    help="Inode numbers below 2^32, for 32-bit programs.",
)
@option(
    MOUNT,
    "--fsname",
    metavar="NAME",
    help="Source shown by mount, df and findmnt.  [default: s3://BUCKET/PREFIX]",
)
@option(
    MOUNT,
    "-o",
    "fstab_options",
    multiple=True,
    metavar="ITEMS",
    help="Options as in /etc/fstab, separated by commas.",
)
@option(MOUNT, "-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@option(
    MOUNT,
    "--check",
    is_flag=True,
    is_eager=True,
    help="Test configuration, access and network; mount nothing. DIRECTORY is optional.",
)
@option(
    MOUNT,
    "--json",
    "as_json",
    is_flag=True,
    help="Write the result as one JSON object (only with --check).",
)
@option(WRITING, "--allow-delete", is_flag=True, help="Permit programs to delete files.")
@option(WRITING, "--allow-overwrite", is_flag=True, help="Permit programs to replace files.")
@option(
    WRITING, "--allow-rename", is_flag=True, help="Permit programs to rename files and directories."
)
@option(WRITING, "--allow-append", is_flag=True, help="Permit programs to append to files.")
@option(
    WRITING,
    "--incremental-upload",
    is_flag=True,
    help="Make files visible in the bucket while they are written. Directory buckets only.",
)
@option(
    WRITING, "--keep-directories", is_flag=True, help="Store new directories as marker objects."
)
@option(
    WRITING,
    "--staged-writes",
    metavar="DIR",
    help="Permit writes in any order: stage files in DIR on a local disk.",
    shell_complete=directories,
)
@option(
    WRITING,
    "--staged-limit",
    type=number_of("MiB", MIB),
    metavar="MIB",
    help="Disk space for staged files, in MiB.  [default: half of the free space]",
)
@option(
    WRITING,
    "--attributes",
    type=click.Choice(["refuse", "ignore", "keep"]),
    default="refuse",
    metavar="refuse|ignore|keep",
    label="--attributes HOW",
    help="What to do with chmod, chown and touch: refuse them, ignore them, or keep the values in "
    "the object's metadata.  [default: refuse]",
)
@option(
    CLIENT,
    "--maximum-throughput-gbps",
    "--throughput-target-gbps",
    "throughput_gbps",
    label="--maximum-throughput-gbps N",
    type=float,
    metavar="N",
    help="Network bandwidth in Gbit/s; limits the data in flight.  "
    "[default: the EC2 instance's, else 10 for each two cores, at most 120]",
)
@option(
    CLIENT,
    "--max-threads",
    type=int,
    default=16,
    metavar="N",
    show_default=True,
    help="Threads that serve requests of the kernel.",
)
@option(
    CLIENT,
    "--no-channel",
    is_flag=True,
    hidden=True,
    help="Use the FUSE library's own channel to the kernel.",
)
@option(
    CLIENT,
    "--no-native",
    is_flag=True,
    hidden=True,
    help="Let the interpreter receive the bytes of objects.",
)
@option(
    CLIENT,
    "--part-size",
    type=number_of("bytes", 1),
    default=8 * MIB,
    metavar="BYTES",
    show_default=True,
    help="Size of GETs and of upload parts, 65536 or more. "
    "Reads use at most 64 MiB, uploads at least 5 MiB.",
)
@option(
    CLIENT,
    "--read-part-size",
    type=number_of("bytes", 1),
    metavar="BYTES",
    help="Size of GETs, 65536 or more; at most 64 MiB are used.  [default: --part-size]",
)
@option(
    CLIENT,
    "--write-part-size",
    type=number_of("bytes", 1),
    metavar="BYTES",
    help="Size of the first parts of an upload, 5242880 or more.  [default: --part-size]",
)
@option(
    CLIENT,
    "--upload-checksums",
    type=click.Choice(["crc32c", "crc64nvme", "off"]),
    default="crc32c",
    metavar="crc32c|crc64nvme|off",
    label="--upload-checksums WHICH",
    help="Checksum of uploads: crc32c, crc64nvme or off.  [default: crc32c]",
)
@option(
    CLIENT,
    "--memory-target",
    type=number_of("MiB", MIB),
    metavar="MIB",
    help="Memory for file data, in MiB.  "
    "[default: a quarter of RAM, but 128 to 1024, or up to 4096 with 8 cores]",
)
@option(
    CLIENT,
    "--read-timeout",
    "timeout_s",
    type=float,
    default=60.0,
    metavar="SECONDS",
    help="Longest wait for an answer of S3, with all retries; then EIO.  [default: 60]",
)
@option(
    CLIENT,
    "--read-checksums",
    type=click.Choice(["on", "off"]),
    default="on",
    metavar="on|off",
    show_default=True,
    help="Compare data with S3's checksums when reading.",
)
@option(
    CLIENT,
    "--ca-bundle",
    metavar="FILE",
    help="PEM file with the certificates to trust.",
    shell_complete=files,
)
@option(
    CLIENT,
    "--bind",
    "interfaces",
    multiple=True,
    metavar="INTERFACE",
    help="Network interface for connections to S3. Give the option several times to spread them.",
)
@option(
    CLIENT,
    "--user-agent-prefix",
    metavar="TEXT",
    help="Text to put in front of the User-Agent header.",
)
@option(OBJECTS, "--storage-class", metavar="CLASS", help="Storage class of new objects.")
@option(
    OBJECTS,
    "--sse",
    metavar="TYPE",
    help="Encryption of new objects: AES256, aws:kms or aws:kms:dsse.",
)
@option(OBJECTS, "--sse-kms-key-id", metavar="KEY", help="KMS key for the encryption.")
@option(
    OBJECTS,
    "--infer-content-type",
    "content_types",
    is_flag=True,
    help="Set the content type by the file name's extension.",
)
@option(
    CACHING,
    "--cache",
    metavar="DIRECTORY",
    help="Keep what is read in this directory, for all mounts and restarts.",
    shell_complete=directories,
)
@option(
    CACHING,
    "--max-cache-size",
    type=number_of("MiB", MIB),
    metavar="MIB",
    help="Disk space for the cache, in MiB.  [default: leaves 5 % of the disk free]",
)
@option(
    CACHING,
    "--cache-xz",
    "cache_bucket",
    metavar="BUCKET",
    help="Keep objects of up to 1 MiB in this bucket, for mounts on all hosts; usually a directory "
    "bucket nearby.",
)
@option(
    CACHING,
    "--cache-writes",
    is_flag=True,
    help="Also keep files that are written here, of up to 32 MiB (less if memory is short).",
)
@option(
    CACHING,
    "--metadata-ttl",
    type=time_to_live,
    metavar="SECONDS|indefinite|minimal",
    label="--metadata-ttl TTL",
    help="How long to use names, attributes and versions without asking S3 again: SECONDS, "
    "indefinite, or minimal (1 s, and every open asks).  [default: minimal, with a cache 60]",
)
@option(
    CACHING,
    "--negative-metadata-ttl",
    type=time_to_live,
    metavar="SECONDS|indefinite|minimal",
    label="--negative-metadata-ttl TTL",
    help="How long to remember that a name does not exist; minimal: not at all.  "
    "[default: as --metadata-ttl]",
)
@option(
    METRICS,
    "--otlp-endpoint",
    metavar="URL",
    help="Send metrics to this OpenTelemetry collector (OTLP over HTTP; needs the extra otlp).",
)
@option(
    METRICS,
    "--otlp-export-interval",
    "otlp_interval_s",
    type=number_of("seconds"),
    metavar="SECONDS",
    help="Interval between two exports.  [default: 60]",
)
@option(
    METRICS,
    "--prometheus",
    metavar="ADDRESS:PORT",
    help="Serve /metrics and /healthz at this address (needs the extra prometheus). "
    ":PORT accepts only local connections.",
)
@option(
    LOGGING,
    "-l",
    "--log-directory",
    metavar="DIRECTORY",
    help="Log to a new file in this directory.  [default: syslog]",
    shell_complete=directories,
)
@option(LOGGING, "-d", "--debug", is_flag=True, help="Log at debug level.")
@option(LOGGING, "--log-metrics", is_flag=True, help="Log metrics every 5 seconds.")
@option(LOGGING, "--debug-crt", is_flag=True, help="Log the AWS Common Runtime, too.")
@option(LOGGING, "--no-log", is_flag=True, help="Log nothing.")
@click.version_option(
    __version__, "-V", "--version", prog_name="mount-s3", message="%(prog)s %(version)s"
)
def main(check: bool, as_json: bool, **options: Any) -> None:
    """Mount the S3 bucket BUCKET at DIRECTORY, as a file system."""
    config = make_config(**options)
    if config.mount.descriptor is not None:
        directory = claim(config.mount.descriptor)
        config = replace(config, mount=replace(config.mount, directory=directory))
    if check:
        click.get_current_context().exit(_check(config, as_json=as_json))
    if as_json:
        raise MountError("--json works only with --check", "add --check, or omit --json")
    kept = _kept_by_manager(config)
    if not kept and config.mount.descriptor is None and dead_mount.remove(config.mount.directory):
        shown = printable(config.mount.directory)
        click.echo(f"removed the dead mount of a mount-s3 that was killed at {shown}", err=True)
    done = f"{display_name(config.bucket)} is mounted at {printable(config.mount.directory)}"
    log_hint = log_location(config.log)
    if not config.log.foreground:
        if config.mount.keep_alive:
            daemon.wait_for(partial(launch.start, config), log_hint=log_hint)
        else:
            daemon.run_in_background(lambda ready: _mount(config, ready), log_hint=log_hint)
        click.echo(done)
        if is_in_memory_only(config.log):
            directory = printable(config.mount.directory)
            what = "this machine has no syslog: the log is in memory only"
            hint = (
                f"(show it: mount-s3ctl log {directory}); to write it to files: --log-directory DIR"
            )
            click.echo(f"{what} {hint}", err=True)
        return
    if config.mount.keep_alive:
        launch.become(config, done, kept)

    def ready() -> None:
        click.echo(done)
        sd_notify.notify(os.environ, READY="1", STATUS=done)

    try:
        code = _mount(config, ready)
    except (MountError, click.exceptions.Exit):
        raise
    except Exception as error:
        raise daemon.unexpected(error, log_hint) from None
    click.get_current_context().exit(code)


def _kept_by_manager(config: Config) -> dict[str, int]:
    """Return what the service manager has kept of a mount to go on with; {}: there is none."""
    found = stored.take(os.environ)
    if found is None:
        return {}
    manager = keeper.ServiceManager(os.environ.get(sd_notify.VARIABLE, ""), {})
    kept = stored.go_on(config, manager, found)
    if not isinstance(kept, str):
        return kept
    if kept:
        what = "the mount that the service manager has kept cannot go on"
        click.echo(f"{what} ({printable(kept)}): it is unmounted, and mounted anew", err=True)
    return {}


def _check(config: Config, *, as_json: bool) -> int:
    """Run the checks; return the exit code."""
    try:
        from mountpoint.checks import command

        return command.run(config, as_json=as_json)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return 128 + signal.SIGINT


def _mount(config: Config, on_ready: Callable[[], None]) -> int:
    """Mount and serve until unmounted. Imports modules that start threads: call after the fork."""
    try:
        from mountpoint.mount import run
    except ImportError as error:
        raise preflight.missing_library(error) from error
    return run.run(config, on_ready)
