"""The command line: options to `Config`, then mount.

The names, defaults and meanings of the options are the reference's (AWS's mount-s3 --help
and doc/CONFIGURATION.md); README.md says which are ours.

* There is one table of options, click's. `-o` items (`fstab`) become long options in front
  of the others and are parsed with them, so that both ways know the same names.
* Exit codes: 0 mounted in the background, or unmounted in the foreground; 1 for every
  MountError, values out of range and contradictions among them; 2 for what click refuses by
  itself (an unknown option, a missing argument, a word where a number belongs), as the
  reference's parser does.
* Nothing heavy is imported here: `--help` and wrong options answer at once, and what starts
  threads is imported after the fork (`daemon`).

It does not look at the directory, the bucket or the credentials: `mount` does.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import click

from mountpoint import __version__, daemon, logs
from mountpoint.config import (
    INDEFINITE_TTL_S,
    LEAST_PART_BYTES,
    MIB,
    MINIMAL_TTL_S,
    REQUEST_S,
    BucketConfig,
    ChangeConfig,
    ClientConfig,
    Config,
    CredentialsConfig,
    FileSystemConfig,
    LogConfig,
    MountConfig,
    ReadConfig,
    WriteConfig,
    check_range,
)
from mountpoint.errors import MountError
from mountpoint.fstab import long_options
from mountpoint.log_render import printable
from mountpoint.memory import total_bytes

#: Below 64 KiB a part is mostly overhead (0.3 ms of CPU per ranged GET). 5 GiB is the largest
#: part S3 takes: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MIN_PART_BYTES = 64 << 10
MAX_PART_BYTES = 5 << 30
#: Reads split larger parts, so that a part ahead and a second reader fit into the memory.
MAX_READ_PART_BYTES = 64 * MIB

#: Memory for reading, unless told: a quarter of the machine's, between these.
LEAST_MEMORY_BYTES = 128 * MIB
MOST_MEMORY_BYTES = 1024 * MIB
#: What may be told, in MiB.
MEMORY_MIB = (16, 1 << 20)

#: Room for staged files, in MiB.
STAGED_MIB = (16, 1 << 30)

#: Stands for the word "minimal" where seconds are told.
MINIMAL = -1.0

EPILOG = """\
In /etc/fstab the type is fuse.mount-s3. Options are the long ones without dashes, with commas
between, 'ro' and 'rw'; a comma, backslash or double quote inside a value has a backslash before it:

\b
  my-bucket /mnt/data fuse.mount-s3 _netdev,ro,allow-other,prefix=a/ 0 0

mount(8) finds mount-s3 in /usr/local/bin and /usr/bin only; installed elsewhere, link it there.

Examples:

\b
  mount-s3 my-bucket /mnt/data
  mount-s3 --read-only --region eu-west-1 s3://my-bucket/logs/ ~/logs

Unmount with: umount DIRECTORY, or fusermount -u DIRECTORY.

Environment: AWS_CA_BUNDLE as --ca-bundle. MOUNTPOINT_LOG overrides --debug and --debug-crt:
LEVEL or TARGET=LEVEL with commas between, such as 'debug,awscrt=warn'.
"""


class TopicOption(click.Option):
    """An option that the help shows under a topic, and, given a label, under that alone."""

    def __init__(self, *args: Any, topic: str, label: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.topic = topic
        self.label = label

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return what the help shows on the left and on the right."""
        record = super().get_help_record(ctx)
        return (self.label, record[1]) if record and self.label else record


class MountCommand(click.Command):
    """A command with `-o`, help by topic, and MountErrors as click's errors."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `args` with the items of every `-o` in front, where others override them."""
        if args:
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
            with _click_errors():
                args = [*long_options(given.get("fstab_options", ()), self._long_names()), *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _click_errors():
            return super().invoke(ctx)

    def _long_names(self) -> list[str]:
        names = (name for option in self.params for name in option.opts)
        return [name[2:] for name in names if name.startswith("--")]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, then the options topic by topic, in the table's order."""
        with formatter.section("Arguments"):
            formatter.write_dl(
                [
                    ("BUCKET", "Bucket name, access point alias or ARN, or s3://BUCKET/PREFIX/."),
                    ("DIRECTORY", "Existing directory to mount it at."),
                ]
            )
        topics: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None and isinstance(option, click.Option):
                topics.setdefault(getattr(option, "topic", "Options"), []).append(record)
        for topic, records in topics.items():
            with formatter.section(topic):
                formatter.write_dl(records, col_max=30)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the paragraphs after the options, without click's indentation."""
        formatter.write_paragraph()
        formatter.write_text(EPILOG)


@contextlib.contextmanager
def _click_errors() -> Iterator[None]:
    try:
        yield
    except MountError as error:
        raise click.ClickException(printable_lines(str(error))) from None


def printable_lines(text: str) -> str:
    """Return `text` fit for a terminal, its line ends kept."""
    return "\n".join(printable(line) for line in text.split("\n"))


def octal(text: str) -> int:
    """Return the number that `text` is in octal digits, as in chmod(1)."""
    try:
        return int(text, 8)
    except ValueError:
        raise click.BadParameter(f"'{text}' is not an octal number such as 0755.") from None


def time_to_live(text: str) -> float:
    """Return the seconds that `text` tells; `MINIMAL` for that word."""
    words = {"minimal": MINIMAL, "indefinite": INDEFINITE_TTL_S}
    if text in words:
        return words[text]
    if re.fullmatch(r"\+?[0-9]+", text):
        return float(text)
    raise click.BadParameter(f"'{text}' is not a whole number of seconds, minimal or indefinite.")


def _option(topic: str, *names: str, **attributes: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=TopicOption, topic=topic, **attributes)


BUCKET = "Bucket options"
CREDENTIALS = "AWS credentials options"
MOUNT = "Mount options"
CLIENT = "Client options"
OBJECTS = "New object options"
CACHING = "Caching options"
LOGGING = "Logging options"


@click.command(
    cls=MountCommand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    options_metavar="[OPTIONS]",
)
@click.argument("bucket", metavar="BUCKET")
@click.argument("directory", metavar="DIRECTORY")
@_option(BUCKET, "--prefix", metavar="PREFIX", help="Mount this part only; ends in '/'.")
@_option(BUCKET, "--region", metavar="REGION", help="Region of the bucket.  [default: found]")
@_option(BUCKET, "--endpoint-url", metavar="URL", help="S3 endpoint.  [default: the region's]")
@_option(BUCKET, "--force-path-style", is_flag=True, help="Bucket in the path, not in the host.")
@_option(BUCKET, "--dual-stack", is_flag=True, help="Use endpoints with IPv6 and IPv4.")
@_option(BUCKET, "--transfer-acceleration", is_flag=True, help="Use S3 Transfer Acceleration.")
@_option(BUCKET, "--requester-pays", is_flag=True, help="Pay for requests to others' buckets.")
@_option(
    BUCKET, "--expected-bucket-owner", metavar="ID", help="Fail if the bucket is another account's."
)
@_option(CREDENTIALS, "--no-sign-request", is_flag=True, help="Do not sign: no credentials.")
@_option(CREDENTIALS, "--profile", metavar="PROFILE", help="Profile of the credential files.")
@_option(MOUNT, "--read-only", is_flag=True, help="Mount read-only.")
@_option(MOUNT, "--allow-delete", is_flag=True, help="Let files be deleted.")
@_option(MOUNT, "--allow-overwrite", is_flag=True, help="Let files be replaced.")
@_option(MOUNT, "--allow-rename", is_flag=True, help="Let files and directories be renamed.")
@_option(MOUNT, "--allow-append", is_flag=True, help="Let files be written on.")
@_option(
    MOUNT,
    "--incremental-upload",
    is_flag=True,
    help="Let files grow in the bucket as they are written. Directory buckets only.",
)
@_option(MOUNT, "--keep-directories", is_flag=True, help="Keep new directories by markers.")
@_option(
    MOUNT,
    "--staged-writes",
    metavar="DIR",
    help="Write files in any order, on a local disk first.",
)
@_option(
    MOUNT,
    "--staged-limit",
    type=int,
    metavar="MIB",
    help="Room for them, MiB.  [default: half of what is free]",
)
@_option(
    MOUNT,
    "--attributes",
    type=click.Choice(["refuse", "ignore", "keep"]),
    default="refuse",
    metavar="refuse|ignore|keep",
    label="--attributes HOW",
    help="What chmod, chown and touch do: refuse, ignore or keep in metadata.  [default: refuse]",
)
@_option(MOUNT, "--auto-unmount", is_flag=True, help="Unmount when the process ends or dies.")
@_option(MOUNT, "--allow-root", is_flag=True, help="Let root access it, too.")
@_option(MOUNT, "--allow-other", is_flag=True, help="Let all users access it, also root.")
@_option(MOUNT, "--uid", type=int, metavar="UID", help="Owner of the files.  [default: you]")
@_option(MOUNT, "--gid", type=int, metavar="GID", help="Group of the files.  [default: yours]")
@_option(
    MOUNT,
    "--dir-mode",
    type=octal,
    metavar="MODE",
    help="Directory permissions.  [default: 0755]",
)
@_option(
    MOUNT, "--file-mode", type=octal, metavar="MODE", help="File permissions.  [default: 0644]"
)
@_option(
    MOUNT,
    "-o",
    "fstab_options",
    multiple=True,
    expose_value=False,
    metavar="ITEMS",
    help="Options as in /etc/fstab (see below).",
)
@_option(MOUNT, "-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@_option(
    CLIENT,
    "--maximum-throughput-gbps",
    "--throughput-target-gbps",
    "throughput_gbps",
    label="--maximum-throughput-gbps N",
    type=float,
    default=10.0,
    metavar="N",
    help="Throughput to aim at, in Gbit/s.  [default: 10]",
)
@_option(
    CLIENT,
    "--max-threads",
    type=int,
    default=16,
    metavar="N",
    show_default=True,
    help="Threads that serve the kernel.",
)
@_option(
    CLIENT,
    "--no-channel",
    is_flag=True,
    hidden=True,
    help="Negotiate with the kernel only what the FUSE library does.",
)
@_option(
    CLIENT,
    "--part-size",
    type=int,
    default=8 * MIB,
    metavar="SIZE",
    show_default=True,
    help="Bytes per request, 65536 or more.",
)
@_option(
    CLIENT,
    "--read-part-size",
    type=int,
    metavar="SIZE",
    help="Bytes per GET.  [default: --part-size]",
)
@_option(
    CLIENT,
    "--write-part-size",
    type=int,
    metavar="SIZE",
    help="Bytes per part of an upload, 5 MiB or more.  [default: --part-size]",
)
@_option(
    CLIENT,
    "--upload-checksums",
    type=click.Choice(["crc32c", "crc64nvme", "off"]),
    default="crc32c",
    metavar="crc32c|crc64nvme|off",
    label="--upload-checksums WHICH",
    help="Checksum of uploads: crc32c, crc64nvme or off.  [default: crc32c]",
)
@_option(
    CLIENT,
    "--memory-target",
    type=int,
    metavar="MIB",
    help="Memory for data, MiB.  [default: a quarter of the machine's, 128 to 1024]",
)
@_option(
    CLIENT,
    "--read-timeout",
    type=float,
    default=60.0,
    metavar="SECONDS",
    help="Longest wait for S3, then EIO.  [default: 60]",
)
@_option(
    CLIENT,
    "--read-checksums",
    type=click.Choice(["on", "off"]),
    default="on",
    metavar="on|off",
    show_default=True,
    help="Compare what is read with S3's checksums.",
)
@_option(CLIENT, "--ca-bundle", metavar="FILE", help="Certificates to trust, PEM.")
@_option(OBJECTS, "--storage-class", metavar="CLASS", help="Storage class of new objects.")
@_option(OBJECTS, "--sse", metavar="TYPE", help="Encryption: AES256, aws:kms or aws:kms:dsse.")
@_option(OBJECTS, "--sse-kms-key-id", metavar="KEY", help="KMS key of the encryption.")
@_option(OBJECTS, "--infer-content-type", is_flag=True, help="Content types by the names' endings.")
@_option(
    CACHING,
    "--metadata-ttl",
    type=time_to_live,
    default="minimal",
    metavar="SECONDS|indefinite|minimal",
    label="--metadata-ttl TTL",
    help="How long names, attributes and versions are believed: SECONDS, indefinite or minimal "
    "(1 s, and open always asks).  [default: minimal]",
)
@_option(
    CACHING,
    "--negative-metadata-ttl",
    type=time_to_live,
    metavar="SECONDS|indefinite|minimal",
    label="--negative-metadata-ttl TTL",
    help="How long a name that was not there is believed not to be.  [default: as --metadata-ttl]",
)
@_option(
    LOGGING,
    "-l",
    "--log-directory",
    metavar="DIRECTORY",
    help="Log to a new file there.  [default: syslog]",
)
@_option(LOGGING, "-d", "--debug", is_flag=True, help="Log more.")
@_option(LOGGING, "--debug-crt", is_flag=True, help="Log what the AWS Common Runtime does.")
@_option(LOGGING, "--no-log", is_flag=True, help="Log nothing.")
@click.version_option(__version__, prog_name="mount-s3", message="%(prog)s %(version)s")
def main(**options: Any) -> None:
    """Mount the S3 bucket BUCKET at DIRECTORY, as a file system."""
    config = make_config(**options)
    done = f"{describe(config.bucket)} is mounted at {printable(config.mount.directory)}"
    log_hint = logs.where(config.log)
    if not config.log.foreground:
        daemon.run_in_background(lambda ready: _mount(config, ready), log_hint=log_hint)
        click.echo(done)
        return
    try:
        code = _mount(config, lambda: click.echo(done))
    except (MountError, click.exceptions.Exit):
        raise
    except Exception as error:
        raise daemon.unexpected(error, log_hint) from None
    click.get_current_context().exit(code)


def _mount(config: Config, on_ready: Callable[[], None]) -> int:
    """Mount and serve until unmounted. Loads what starts threads: not before the fork."""
    try:
        from mountpoint import mount
    except ImportError as error:
        raise MountError(
            f"cannot load a library: {error}",
            "libfuse 2.9 is in the package 'fuse' or 'libfuse2'; others come with mount-s3",
        ) from error
    return mount.run(config, on_ready)


def make_config(bucket: str, directory: str, **options: Any) -> Config:
    """Return the checked configuration for the options as click hands them over.

    Paths become absolute. Raises MountError for values out of range and contradictions.
    """
    name, prefix = split_bucket(bucket, options["prefix"])
    timeout = options["read_timeout"]
    part_size = _part_size(options, "part_size", MIN_PART_BYTES)
    read_part_size = _part_size(options, "read_part_size", MIN_PART_BYTES) or part_size
    write_part_size = _part_size(options, "write_part_size", LEAST_PART_BYTES)
    check_range("--read-timeout", timeout, 1, 86_400, "seconds")
    checksum = options["upload_checksums"]
    ca_bundle = options["ca_bundle"] or os.environ.get("AWS_CA_BUNDLE") or None
    uid, gid = options["uid"], options["gid"]
    return Config(
        bucket=BucketConfig(
            name=name,
            prefix=os.fsencode(prefix),
            **_same(
                options,
                "region",
                "endpoint_url",
                "force_path_style",
                "dual_stack",
                "transfer_acceleration",
                "requester_pays",
            ),
            expected_owner=options["expected_bucket_owner"],
        ),
        credentials=CredentialsConfig(**_same(options, "profile", "no_sign_request")),
        mount=MountConfig(
            directory=_absolute(directory),
            **_same(
                options, "read_only", "auto_unmount", "allow_root", "allow_other", "max_threads"
            ),
            channel=not options["no_channel"],
        ),
        filesystem=FileSystemConfig(
            uid=os.getuid() if uid is None else uid,
            gid=os.getgid() if gid is None else gid,
            **_caching(options["metadata_ttl"], options["negative_metadata_ttl"]),
            **_given(options, "dir_mode", "file_mode"),
        ),
        client=ClientConfig(
            throughput_gbps=options["throughput_gbps"],
            part_size_bytes=part_size,
            ca_bundle=ca_bundle and _absolute(os.path.expanduser(ca_bundle)),
            verify_checksums=options["read_checksums"] == "on",
        ),
        change=ChangeConfig(
            content_types=options["infer_content_type"],
            **_staging(options["staged_writes"], options["staged_limit"]),
            **_same(
                options,
                "allow_delete",
                "allow_overwrite",
                "allow_rename",
                "allow_append",
                "incremental_upload",
                "keep_directories",
                "attributes",
            ),
        ),
        read=ReadConfig(
            part_size_bytes=min(read_part_size, MAX_READ_PART_BYTES),
            memory_bytes=memory_bytes(options["memory_target"]),
            timeout_s=timeout,
            most_ahead_bytes=int(options["throughput_gbps"] * 1e9 / 8 * REQUEST_S),
        ),
        write=WriteConfig(
            # Parts as small as they may be for reads are too small for uploads.
            part_size_bytes=write_part_size or max(part_size, LEAST_PART_BYTES),
            checksum=None if checksum == "off" else checksum,
            **_same(options, "storage_class", "sse", "sse_kms_key_id"),
        ),
        log=LogConfig(
            directory=options["log_directory"] and _absolute(options["log_directory"]),
            filter=os.environ.get("MOUNTPOINT_LOG") or None,
            **_same(options, "foreground", "debug", "debug_crt", "no_log"),
        ),
    )


def _part_size(options: dict[str, Any], name: str, least_bytes: int) -> int:
    """Return the part size that an option tells; 0 if it is not given."""
    size = options[name]
    if size is None:
        return 0
    check_range(f"--{name.replace('_', '-')}", size, least_bytes, MAX_PART_BYTES, "bytes")
    return int(size)


def _staging(directory: str | None, limit_mib: int | None) -> dict[str, Any]:
    """Return what `ChangeConfig` says of staged writes."""
    if directory is None:
        if limit_mib is not None:
            raise MountError("--staged-limit is given without --staged-writes", "add a directory")
        return {}
    if limit_mib is not None:
        check_range("--staged-limit", limit_mib, *STAGED_MIB, "MiB")
    limit_bytes = None if limit_mib is None else limit_mib * MIB
    return {"staging_directory": _absolute(directory), "staging_limit_bytes": limit_bytes}


def _caching(ttl_s: float, negative_ttl_s: float | None) -> dict[str, Any]:
    """Return what `FileSystemConfig` calls the two times to live."""
    negative_ttl_s = ttl_s if negative_ttl_s is None else negative_ttl_s
    return {
        "ttl_s": MINIMAL_TTL_S if ttl_s == MINIMAL else ttl_s,
        "negative_ttl_s": max(negative_ttl_s, 0.0),
        "asks_on_open": ttl_s <= 0,
    }


def memory_bytes(target_mib: int | None) -> int:
    """Return the memory for reading: as told, or by what this machine has."""
    if target_mib is not None:
        check_range("--memory-target", target_mib, *MEMORY_MIB, "MiB")
        return target_mib * MIB
    return min(max(total_bytes() // 4, LEAST_MEMORY_BYTES), MOST_MEMORY_BYTES)


def split_bucket(bucket: str, prefix: str | None) -> tuple[str, str]:
    """Return the bucket's name and the prefix, from a name or an s3:// URI and `--prefix`."""
    if not bucket.startswith("s3://"):
        return bucket, prefix or ""
    name, _, uri_prefix = bucket.removeprefix("s3://").partition("/")
    if name.startswith("arn:"):
        raise MountError(
            f"'{bucket}': an ARN cannot stand in an s3:// URI",
            "give the ARN alone, and --prefix for a part of it",
        )
    if uri_prefix and prefix:
        raise MountError(
            f"'{bucket}' and --prefix {prefix} exclude each other",
            "give the prefix in the URI or with --prefix",
        )
    return name, uri_prefix or prefix or ""


def describe(bucket: BucketConfig) -> str:
    """Return what is mounted, in words."""
    name = f"bucket {bucket.name}"
    if not bucket.prefix:
        return name
    return f"prefix {printable(bucket.prefix.decode('utf-8', 'surrogateescape'))} of {name}"


def _same(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names}


def _given(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if options[name] is not None}


def _absolute(path: str) -> str:
    """Return `path` from the root, as the kernel sees it: ".." after a symlink is real."""
    try:
        return os.path.realpath(path)
    except FileNotFoundError:  # only for a relative path
        raise MountError(
            "the current directory does not exist any more", "give absolute paths"
        ) from None
