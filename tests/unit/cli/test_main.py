"""The command line: the effect of each option on the configuration, and all refusals."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, cast

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import mountpoint
from mountpoint.cli import main as cli
from mountpoint.cli import settings
from mountpoint.cli.fstab import split_items
from mountpoint.config import (
    MIB,
    BucketConfig,
    ClientConfig,
    Config,
    CredentialsConfig,
    FileSystemConfig,
    LogConfig,
    MountConfig,
    ReadConfig,
    event_loops,
)
from mountpoint.errors import MountError
from mountpoint.log.setup import log_location
from mountpoint.log.words import display_name
from mountpoint.mount import daemon
from mountpoint.mount.kept import launch
from mountpoint.system.cpus import usable_cores


class Mounted:
    """Replaces the process that would mount: it records the configuration."""

    def __init__(self) -> None:
        self.config: Config | None = None

    def mount(self, config: Config, on_ready: Callable[[], None]) -> int:
        """Replace `cli._mount`."""
        self.config = config
        on_ready()
        return 0

    def start(self, config: Config, status: int) -> int:
        """Replace `launch.start`."""
        self.config = config
        return 0

    def become(self, config: Config, done: str, kept: dict[str, int]) -> NoReturn:
        """Replace `launch.become`."""
        self.config = config
        click.echo(done)
        raise SystemExit(0)


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> Mounted:
    """Prevent the command from forking and mounting, and unset our variables."""
    stand_in = Mounted()

    def in_background(work: Callable[[Callable[[], None]], int], log_hint: str) -> None:
        work(lambda: None)

    def wait_for(start: Callable[[int], int], log_hint: str) -> None:
        start(-1)

    monkeypatch.setattr(cli, "_mount", stand_in.mount)
    monkeypatch.setattr(launch, "start", stand_in.start)
    monkeypatch.setattr(launch, "become", stand_in.become)
    monkeypatch.setattr("mountpoint.log.setup.SYSLOG_SOCKET", "/")  # pretend that there is a syslog
    monkeypatch.setattr(daemon, "run_in_background", in_background)
    monkeypatch.setattr(daemon, "wait_for", wait_for)
    for name in ("AWS_CA_BUNDLE", "MOUNTPOINT_LOG"):
        monkeypatch.delenv(name, raising=False)
    return stand_in


def run(*arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli.main, list(arguments), prog_name="mount-s3")


def config_of(mounted: Mounted, *options: str) -> Config:
    """Return the configuration from the options for "bucket" at /mnt."""
    result = run("bucket", "/mnt", *options)
    assert result.exit_code == 0, result.output
    assert mounted.config is not None
    return mounted.config


def refusal(*arguments: str, code: int = 1) -> str:
    """Return the message of the refused arguments, as one line."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    if code == 1:
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) <= 2
    return result.stderr.replace("\n", " ")


def default_read_config() -> ReadConfig:
    """Return this machine's default configuration of reads."""
    loops = event_loops(usable_cores())
    return ReadConfig(
        part_size_bytes=8 * MIB,
        memory_bytes=settings.memory_bytes(None, loops),
        timeout_s=60,
        event_loops=loops,
    )


def test_defaults_are_the_references(mounted: Mounted) -> None:
    """Without options the defaults are those of AWS's mount-s3, and the user's own ids."""
    assert config_of(mounted) == Config(
        bucket=BucketConfig("bucket"),
        mount=MountConfig("/mnt", keep_alive=True, max_threads=16, fsname="s3://bucket"),
        filesystem=FileSystemConfig(os.getuid(), os.getgid(), 0o755, 0o644),
        credentials=CredentialsConfig(),
        client=ClientConfig(event_loops=event_loops(usable_cores())),
        read=default_read_config(),
        log=LogConfig(),
    )


class Checked:
    """Replaces the checks: it records its arguments."""

    def __init__(self) -> None:
        self.asked: tuple[Config, bool] | None = None

    def check(self, config: Config, *, as_json: bool) -> int:
        """Replace `cli._check`."""
        self.asked = (config, as_json)
        return 1


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Checked:
    """Prevent the command from checking anything."""
    stand_in = Checked()
    monkeypatch.setattr(cli, "_check", stand_in.check)
    return stand_in


@pytest.mark.parametrize(
    ("arguments", "directory", "as_json"),
    [
        (["bucket", "--check"], "", False),
        (["--check", "bucket"], "", False),
        (["bucket", "/mnt", "--check", "--json"], "/mnt", True),
        (["--json", "bucket", "-o", "ro", "--check"], "", True),
    ],
)
def test_check(
    checked: Checked, mounted: Mounted, arguments: list[str], directory: str, as_json: bool
) -> None:
    """--check does not mount, needs no directory, and accepts the other options."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert mounted.config is None
    assert checked.asked is not None
    config, json = checked.asked
    assert (config.mount.directory, json) == (directory, as_json)
    assert config.mount.read_only == ("ro" in arguments)


def test_a_directory_is_needed_for_mounting(mounted: Mounted) -> None:
    """Mounting without a directory is click's usage error."""
    said = refusal("bucket", code=2)
    assert "Usage: mount-s3 [OPTIONS] BUCKET DIRECTORY" in said
    assert "Missing argument 'DIRECTORY'" in said
    assert mounted.config is None


def test_json_is_for_check(mounted: Mounted) -> None:
    """--json without --check is refused before the mount."""
    assert "add --check" in refusal("bucket", "/mnt", "--json")
    assert mounted.config is None


def test_check_refuses_wrong_options(checked: Checked) -> None:
    """The refusals are the same as for mounting."""
    assert "not a bucket" in refusal("no bucket", "--check")
    assert checked.asked is None


def test_interrupted_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C exits with the shell's 130, without a traceback."""

    def interrupt(config: Config, *, as_json: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("mountpoint.checks.command.run", interrupt)
    result = run("bucket", "--check")
    assert (result.exit_code, result.stderr, result.stdout) == (130, "interrupted\n", "")


@pytest.mark.parametrize(
    ("total_mib", "cores", "expected_mib"),
    [
        (128, 2, 64),
        (256, 2, 128),
        (512, 2, 128),
        (2048, 2, 512),
        (4096, 2, 1024),
        (1 << 20, 1, 1024),
        (1 << 20, 2, 1024),
        (1 << 20, 4, 2048),
        (1 << 20, 16, 4096),
        (1 << 20, 192, 4096),
        (2048, 192, 512),
    ],
)
def test_memory_by_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    mounted: Mounted,
    total_mib: int,
    cores: int,
    expected_mib: int,
) -> None:
    """A quarter of the memory: 128 MiB to 1 GiB for two cores, 4 GiB for eight; at most half."""
    monkeypatch.setattr(settings, "total_bytes", lambda: total_mib * MIB)
    monkeypatch.setattr(settings, "usable_cores", lambda: cores)
    assert config_of(mounted).read.memory_bytes == expected_mib * MIB


@pytest.mark.parametrize(
    ("cores", "options", "loops", "ahead_bytes"),
    [
        (1, [], 1, 160 * MIB),
        (2, [], 1, 160 * MIB),
        (3, [], 1, 160 * MIB),
        (4, [], 2, 160 * MIB),
        (16, [], 8, 160 * MIB),
        (192, [], 12, 160 * MIB),
        (16, ["--maximum-throughput-gbps", "25"], 3, 400_000_000),
        (16, ["--maximum-throughput-gbps", "0.5"], 1, 8_000_000),
        (2, ["--maximum-throughput-gbps", "100"], 1, 1_600_000_000),
        (16, ["--no-native"], 1, 160 * MIB),
    ],
)
def test_event_loops(
    monkeypatch: pytest.MonkeyPatch,
    mounted: Mounted,
    cores: int,
    options: list[str],
    loops: int,
    ahead_bytes: int,
) -> None:
    """One event loop for two cores, but no more than the link can use."""
    monkeypatch.setattr(settings, "usable_cores", lambda: cores)
    config = config_of(mounted, *options)
    assert (config.client.event_loops, config.read.event_loops) == (loops, loops)
    assert config.read.max_ahead_bytes == ahead_bytes


@pytest.mark.parametrize(
    ("options", "place", "value"),
    [
        (["--prefix", "a/é/"], "bucket.prefix", "a/é/".encode()),
        (["--region", "eu-west-1"], "bucket.region", "eu-west-1"),
        (["--endpoint-url", "http://[::1]:9000"], "bucket.endpoint_url", "http://[::1]:9000"),
        (["--force-path-style"], "bucket.force_path_style", True),
        (["--dual-stack"], "bucket.dual_stack", True),
        (["--transfer-acceleration"], "bucket.transfer_acceleration", True),
        (["--requester-pays"], "bucket.requester_pays", True),
        ([], "bucket.bucket_type", None),
        (["--bucket-type", "directory"], "bucket.bucket_type", "directory"),
        (["-o", "bucket-type=general-purpose"], "bucket.bucket_type", "general-purpose"),
        (["--no-sign-request"], "credentials.no_sign_request", True),
        (["--profile", "me"], "credentials.profile", "me"),
        (["--memory-target", "64"], "read.memory_bytes", 64 * MIB),
        (["--maximum-throughput-gbps", "100"], "read.max_ahead_bytes", 1_600_000_000),
        (["--read-only"], "mount.read_only", True),
        (["--auto-unmount"], "mount.auto_unmount", True),
        (["--allow-root"], "mount.allow_root", True),
        (["--allow-other"], "mount.allow_other", True),
        (["--max-threads", "1"], "mount.max_threads", 1),
        (["--uid", "0"], "filesystem.uid", 0),
        (["--gid", "4294967294"], "filesystem.gid", 4294967294),
        (["--inode32"], "filesystem.inode32", True),
        (["-o", "inode32"], "filesystem.inode32", True),
        (["--dir-mode", "700"], "filesystem.dir_mode", 0o700),
        (["--file-mode", "0000"], "filesystem.file_mode", 0),
        (["--maximum-throughput-gbps", "100"], "client.throughput_gbps", 100),
        ([], "client.throughput_gbps", None),
        (["--throughput-target-gbps", "2.5"], "client.throughput_gbps", 2.5),
        (["--part-size", "65536"], "client.part_size_bytes", 65536),
        (["--part-size", "65536"], "read.part_size_bytes", 65536),
        (["--part-size", str(5 << 30)], "client.part_size_bytes", 5 << 30),
        (["--part-size", str(5 << 30)], "read.part_size_bytes", 64 * MIB),
        (["--part-size", "65536"], "write.part_size_bytes", 5 * MIB),
        (["--part-size", str(16 * MIB)], "write.part_size_bytes", 16 * MIB),
        (["--write-part-size", str(9 * MIB)], "write.part_size_bytes", 9 * MIB),
        (["--write-part-size", str(9 * MIB)], "read.part_size_bytes", 8 * MIB),
        (["--read-part-size", str(9 * MIB)], "read.part_size_bytes", 9 * MIB),
        (["--read-part-size", str(9 * MIB)], "write.part_size_bytes", 8 * MIB),
        (["--upload-checksums", "crc64nvme"], "write.checksum", "crc64nvme"),
        (["--upload-checksums", "off"], "write.checksum", None),
        (["--storage-class", "GLACIER_IR"], "write.storage_class", "GLACIER_IR"),
        (["--sse", "AES256"], "write.sse", "AES256"),
        (["--sse", "aws:kms", "--sse-kms-key-id", "k"], "write.sse_kms_key_id", "k"),
        (["--expected-bucket-owner", "111122223333"], "bucket.expected_owner", "111122223333"),
        (["--infer-content-type"], "write.content_types", True),
        (["--allow-delete"], "change.allow_delete", True),
        (["--allow-rename"], "change.allow_rename", True),
        (["--allow-append"], "change.allow_append", True),
        (["--incremental-upload"], "change.incremental_upload", True),
        (["--staged-writes", "/tmp"], "change.staging_directory", "/tmp"),
        (["--staged-writes", "/a", "--staged-limit", "16"], "change.staging_limit_bytes", 16 * MIB),
        (["--keep-directories"], "change.keep_directories", True),
        (["-o", "allow_overwrite"], "change.allow_overwrite", True),
        ([], "change.attributes", "refuse"),
        (["-o", "attributes=keep"], "change.attributes", "keep"),
        (["--read-timeout", "7"], "read.timeout_s", 7),
        ([], "client.verify_checksums", True),
        (["--read-checksums", "on"], "client.verify_checksums", True),
        (["--read-checksums", "off"], "client.verify_checksums", False),
        (["-o", "ro,read-checksums=off"], "client.verify_checksums", False),
        (["-o", "read_checksums=off", "--read-checksums=on"], "client.verify_checksums", True),
        ([], "client.interfaces", ()),
        (["--bind", "lo", "--bind", "lo"], "client.interfaces", ("lo", "lo")),
        (["-o", "bind=lo"], "client.interfaces", ("lo",)),
        (["--user-agent-prefix", "job/7 (a)"], "client.user_agent_prefix", "job/7 (a)"),
        (["-l", "/var/log/s3"], "log.directory", "/var/log/s3"),
        (["-d"], "log.debug", True),
        (["--debug-crt"], "log.debug_crt", True),
        (["--no-log"], "log.no_log", True),
        (["-f"], "log.foreground", True),
        (["--foreground"], "log.foreground", True),
        (["-o", "ro"], "mount.read_only", True),
        (["-o", "allow_other,max-threads=3"], "mount.allow_other", True),
        (["-o", "allow-root"], "mount.allow_root", True),
        (["-o", r"rw,prefix=a\,b\\\"/"], "bucket.prefix", b'a,b\\"/'),
        (["-o", "uid=7,gid=8", "-o", "debug,_netdev"], "log.debug", True),
        (["-o", "uid=7", "--uid", "8"], "filesystem.uid", 8),
        (["--region=us-east-1", "-oro"], "mount.read_only", True),
        (["--prefix", "-o/"], "bucket.prefix", b"-o/"),
        (["-o", ""], "mount.read_only", False),
    ],
)
def test_each_option_reaches_its_place(
    mounted: Mounted, options: list[str], place: str, value: Any
) -> None:
    """Each option, on its own or in -o, sets exactly its field."""
    found: Any = config_of(mounted, *options)
    for name in place.split("."):
        found = getattr(found, name)
    assert found == value


def test_no_option_sets_two_fields() -> None:
    """An option sets the field of its name, and no two components have a field of that name."""
    names = [name.name for part in fields(Config) for name in fields(cast("type[Any]", part.type))]
    options = {each.name for each in cli.main.params if isinstance(each, click.Option)}
    assert [name for name in options if name and names.count(name) > 1] == []


@pytest.mark.parametrize(
    ("bucket", "name", "prefix"),
    [
        ("my.old_Bucket", "my.old_Bucket", b""),
        ("s3://bucket", "bucket", b""),
        ("s3://bucket/", "bucket", b""),
        ("s3://bucket/a b/c%20/", "bucket", b"a b/c%20/"),
        (
            "arn:aws:s3:us-west-2:123456789012:accesspoint/my-ap",
            "arn:aws:s3:us-west-2:123456789012:accesspoint/my-ap",
            b"",
        ),
    ],
)
def test_bucket_forms(mounted: Mounted, bucket: str, name: str, prefix: bytes) -> None:
    """A bucket is a name, an ARN, or an s3:// URI whose path is the literal prefix."""
    assert run(bucket, "/mnt").exit_code == 0
    assert mounted.config is not None
    assert (mounted.config.bucket.name, mounted.config.bucket.prefix) == (name, prefix)


def test_prefix_keeps_bytes_that_are_not_utf8(mounted: Mounted) -> None:
    """Bytes from the shell arrive unchanged."""
    config = config_of(mounted, "--prefix", os.fsdecode(b"\xff/"))
    assert config.bucket.prefix == b"\xff/"
    assert display_name(config.bucket) == r"prefix \xff/ of bucket bucket"


@pytest.mark.parametrize("mode", [(), ("-f",), ("--no-keep-alive",), ("--no-keep-alive", "-f")])
@pytest.mark.parametrize(
    ("bucket", "said"),
    [
        ("bucket", "bucket bucket is mounted at /mnt\n"),
        ("s3://bucket/a/", "prefix a/ of bucket bucket is mounted at /mnt\n"),
    ],
)
def test_message_names_the_mount(
    mounted: Mounted, bucket: str, said: str, mode: tuple[str, ...]
) -> None:
    """One line on stdout, once, in the background and in the foreground."""
    result = run(bucket, "/mnt", *mode)
    assert (result.exit_code, result.stdout, result.stderr) == (0, said, "")


@pytest.mark.parametrize(
    ("options", "told"),
    [([], True), (["-d"], True), (["-l", "/var/x"], False), (["--no-log"], False), (["-f"], False)],
)
def test_says_that_there_is_no_log(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch, options: list[str], told: bool
) -> None:
    """In the background without syslog: one line on stderr, with the option that makes a log."""
    monkeypatch.setattr("mountpoint.log.setup.SYSLOG_SOCKET", "/nowhere")
    result = run("bucket", "/mnt", *options)
    assert (result.exit_code, result.stdout) == (0, "bucket bucket is mounted at /mnt\n")
    said = (
        "this machine has no syslog: the log is in memory only (show it: mount-s3ctl log /mnt); "
        "to write it to files: --log-directory DIR\n"
    )
    assert result.stderr == (said if told else "")


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ([], True),
        (["--no-keep-alive"], False),
        (["--auto-unmount"], False),
        (["--auto-unmount", "--keep-alive"], True),
        (["--no-channel"], False),
        (["-o", "auto_unmount"], False),
        (["-o", "no_keep_alive"], False),
    ],
)
def test_keep_alive(mounted: Mounted, options: list[str], keeps: bool) -> None:
    """A mount outlives its process, unless an option says otherwise."""
    assert config_of(mounted, *options).mount.keep_alive == keeps


def test_paths_become_absolute(
    mounted: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths are resolved before the process changes its directory, including links."""
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "real" / "ca.pem").touch()
    (tmp_path / "link").symlink_to("real/sub")
    monkeypatch.chdir(tmp_path)
    result = run("bucket", "link/..", "--log-directory", "l", "--ca-bundle", "real/ca.pem")
    assert result.exit_code == 0, result.output
    assert mounted.config is not None
    assert mounted.config.mount.directory == str(tmp_path / "real")
    assert mounted.config.log.directory == str(tmp_path / "l")
    assert mounted.config.client.ca_bundle == str(tmp_path / "real" / "ca.pem")
    assert result.stdout == f"bucket bucket is mounted at {tmp_path}/real\n"


def test_directory_that_was_removed_under_us(
    mounted: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path in a deleted directory is refused with the reason."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "current directory does not exist" in refusal("bucket", "mnt")


def test_environment(mounted: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_CA_BUNDLE applies unless --ca-bundle is given; MOUNTPOINT_LOG becomes the filter."""
    for name in ("one.pem", "two.pem"):
        (tmp_path / name).touch()
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "one.pem"))
    monkeypatch.setenv("MOUNTPOINT_LOG", "debug")
    config = config_of(mounted)
    assert config.client.ca_bundle == str(tmp_path / "one.pem")
    assert config.log.filter == "debug"
    config = config_of(mounted, "--ca-bundle", str(tmp_path / "two.pem"))
    assert config.client.ca_bundle == str(tmp_path / "two.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "three.pem"))
    assert "AWS_CA_BUNDLE" in refusal("bucket", "/mnt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["b!", "/mnt"], "'b!' is not a bucket name"),
        (["bucket/", "/mnt"], "'bucket/' is not a bucket name"),
        (["/home/me/bucket", "/mnt"], "with mount(8), write s3://bucket"),
        (["s3://", "/mnt"], "'' is not a bucket name"),
        (["s3://arn:aws:s3:::bucket/a/", "/mnt"], "an s3:// URI cannot contain an ARN"),
        (["s3://bucket/a/", "/mnt", "--prefix", "b/"], "exclude each other"),
        (["s3://bucket/a/", "/mnt", "-o", "prefix=b/"], "exclude each other"),
        (["s3://bucket/a", "/mnt"], "use --prefix a/"),
        (["bucket", "/mnt", "--prefix", "a"], "use --prefix a/"),
        (["bucket", "/mnt", "--region", "Frankfurt"], "'Frankfurt' is not a region name"),
        (["bucket", "/mnt", "--endpoint-url", "s3.example.com"], "not an endpoint URL"),
        (["bucket", "/mnt", "--allow-root", "--allow-other"], "exclude each other"),
        (["bucket", "/mnt", "--allow-root", "-o", "allow_other"], "exclude each other"),
        (["bucket", "/mnt", "--no-sign-request", "--profile", "me"], "exclude each other"),
        (["bucket", "/mnt", "--keep-alive", "--no-keep-alive"], "exclude each other"),
        (["bucket", "/mnt", "--keep-alive", "--no-channel"], "does not work with --no-channel"),
        (["bucket", "/mnt", "--no-log", "-d"], "--no-log excludes"),
        (["bucket", "/mnt", "--no-log", "-l", "/tmp"], "--no-log excludes"),
        (["bucket", "/mnt", "--transfer-acceleration", "--force-path-style"], "exclude each"),
        (["bucket", "/mnt", "--file-mode", "1777"], "--file-mode 1777 is out of range"),
        (["bucket", "/mnt", "--dir-mode", "-1"], "--dir-mode"),
        (["bucket", "/mnt", "--uid", "-1"], "--uid -1 is out of range"),
        (["bucket", "/mnt", "--gid", "4294967295"], "--gid 4294967295 is out of range"),
        (["bucket", "/mnt", "--max-threads", "0"], "it must be 1 to 1024"),
        (["bucket", "/mnt", "--maximum-throughput-gbps", "0"], "out of range"),
        (["bucket", "/mnt", "--maximum-throughput-gbps", "nan"], "out of range"),
        (["bucket", "/mnt", "--part-size", "65535"], "it must be 65536 to 5368709120 bytes"),
        (["bucket", "/mnt", "--read-timeout", "0.5"], "it must be 1 to 86400 seconds"),
        (["bucket", "/mnt", "--read-timeout", "inf"], "out of range"),
        (["bucket", "/mnt", "--bind", "nowhere7"], "no network interface 'nowhere7'"),
        (["bucket", "/mnt", "--user-agent-prefix", "a\r\nb: c"], "not plain text"),
        (["bucket", "/mnt", "--user-agent-prefix", "a" * 257], "too long"),
        (["bucket", "/mnt", "-o", "ro,rw"], "-o ro and -o rw exclude each other"),
        (["bucket", "/mnt", "-o", "rw", "-o", "ro"], "-o ro and -o rw exclude each other"),
        (["bucket", "/mnt", "-o", "read-only"], "use 'ro'"),
        (["bucket", "/mnt", "-o", "read_only"], "use 'ro'"),
        (["bucket", "/mnt", "-o", "foreground"], "runs in the background"),
        (["bucket", "/mnt", "-o", "--uid=2"], "use -o uid=2"),
        (["bucket", "/mnt", "-o", "-f"], "without dashes"),
        (["bucket", "/mnt", "-o", "allow_othr"], "did you mean 'allow-other'?"),
        (["bucket", "/mnt", "-o", "o=x"], "unknown option 'o'"),
        (["bucket", "/mnt", "-o", "help"], "--help"),
        (["bucket", "/mnt", "-o", "check"], "mounts nothing"),
        (["bucket", "/mnt", "-o", "ends\\"], "a backslash at the end"),
        (["bucket", "/mnt", "-o", "a\\b"], "a backslash before 'b'"),
        (["bucket", "/mnt", "-o", 'a="b"'], "a double quote has no backslash before it"),
    ],
)
def test_refused_with_exit_1(mounted: Mounted, arguments: list[str], words: str) -> None:
    """An invalid value or a contradiction: at most two lines, exit code 1, and no mount."""
    assert words in refusal(*arguments)
    assert mounted.config is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument 'BUCKET'"),
        (["bucket"], "Missing argument 'DIRECTORY'"),
        (["bucket", "/mnt", "more"], "unexpected extra argument"),
        (["bucket", "/mnt", "--typo"], "--typo"),
        (["bucket", "/mnt", "--uid", "root"], "'root' is not a valid integer"),
        (["bucket", "/mnt", "--read-checksums"], "requires an argument"),
        (["bucket", "/mnt", "--read-checksums", "yes"], "'yes' is not one of 'on', 'off'"),
        (["bucket", "/mnt", "-o", "read-checksums=1"], "'1' is not one of 'on', 'off'"),
        (["bucket", "/mnt", "-o", "uid=root"], "'root' is not a valid integer"),
        (["bucket", "/mnt", "-o", "debug=1"], "--debug"),
        (["bucket", "/mnt", "--part-size", "8M"], "not a whole number of bytes: 8M is 8388608."),
        (["bucket", "/mnt", "-o", "read-part-size=8 MiB"], "bytes: 8 MiB is 8388608."),
        (["bucket", "/mnt", "--write-part-size", "1gb"], "bytes: 1gb is 1073741824."),
        (["bucket", "/mnt", "--part-size", "8.5M"], "'8.5M' is not a whole number of bytes."),
        (["bucket", "/mnt", "--memory-target", "1G"], "not a whole number of MiB: 1G is 1024."),
        (["bucket", "/mnt", "--staged-limit", "1k"], "'1k' is not a whole number of MiB."),
        (["bucket", "/mnt", "--otlp-export-interval", "1m"], "not a whole number of seconds."),
        (["bucket", "/mnt", "--dir-mode", "rwx"], "'rwx' is not an octal number"),
        (["bucket", "/mnt", "--file-mode", "0888"], "'0888' is not an octal number"),
    ],
)
def test_usage_errors_exit_2(mounted: Mounted, arguments: list[str], words: str) -> None:
    """click reports its own errors, with exit code 2."""
    assert words in refusal(*arguments, code=2)
    assert mounted.config is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (1.0, 0.0, True)),
        (["--metadata-ttl", "minimal"], (1.0, 0.0, True)),
        (["--metadata-ttl", "0"], (0.0, 0.0, True)),
        (["--metadata-ttl", "1"], (1.0, 1.0, False)),
        (["--metadata-ttl", "+60"], (60.0, 60.0, False)),
        (["-o", "metadata-ttl=60"], (60.0, 60.0, False)),
        (["-o", "metadata_ttl=60,negative_metadata_ttl=minimal"], (60.0, 0.0, False)),
        (["--metadata-ttl", "indefinite"], (3_153_600_000.0, 3_153_600_000.0, False)),
        (["--metadata-ttl", "3153600000"], (3_153_600_000.0, 3_153_600_000.0, False)),
        (["--metadata-ttl=60", "--negative-metadata-ttl=5"], (60.0, 5.0, False)),
        (["--metadata-ttl=60", "--negative-metadata-ttl=0"], (60.0, 0.0, False)),
        (["--negative-metadata-ttl", "5"], (1.0, 5.0, True)),
        (["--negative-metadata-ttl", "indefinite"], (1.0, 3_153_600_000.0, True)),
        (["--negative-metadata-ttl", "minimal"], (1.0, 0.0, True)),
    ],
)
def test_times_to_live(
    mounted: Mounted, options: list[str], expected: tuple[float, float, bool]
) -> None:
    """The two times to live, and whether open asks S3. The second defaults to the first."""
    config = config_of(mounted, *options).filesystem
    assert (config.ttl_s, config.negative_ttl_s, config.asks_on_open) == expected


@pytest.mark.parametrize("option", ["--metadata-ttl", "--negative-metadata-ttl"])
@pytest.mark.parametrize("value", ["", "-1", "1.5", "1s", "never", "Minimal", "٣", "1e3", " 1"])
def test_invalid_times_to_live(mounted: Mounted, option: str, value: str) -> None:
    """A time to live is a whole number of seconds, or one of two words."""
    said = refusal("bucket", "/mnt", f"{option}={value}", code=2)
    assert f"'{option}': '{value}' is not a whole number of seconds, minimal or" in said
    said = refusal("bucket", "/mnt", option, "3153600001")
    assert f"{option} 3153600001 is out of range it must be 0 to 3153600000 seconds" in said
    assert mounted.config is None


def test_line_of_mount_fuse(mounted: Mounted) -> None:
    """The command line from mount(8) for a line in fstab, with mount.fuse's additions."""
    words = (
        "rw,auto,noauto,user,nouser,users,_netdev,nofail,nodev,nosuid,defaults,dev,suid,exec,"
        "x-systemd.automount,x-gvfs-show,allow_other,region=eu-west-1"
    )
    config = config_of(mounted, "-o", words)
    assert config == Config(
        bucket=BucketConfig("bucket", region="eu-west-1"),
        mount=MountConfig("/mnt", keep_alive=True, allow_other=True, fsname="bucket"),
        filesystem=FileSystemConfig(os.getuid(), os.getgid()),
        read=default_read_config(),
    )


@given(st.lists(st.text(), min_size=1))
def test_split_items_reverses_escaping(items: list[str]) -> None:
    """Any items, escaped and joined with commas, are split into the same items."""
    escaped = [
        "".join(f"\\{character}" if character in ',\\"' else character for character in item)
        for item in items
    ]
    assert split_items(",".join(escaped)) == items


@given(st.text(alphabet='a,\\"=', max_size=12))
def test_split_items_refuses_or_loses_nothing(text: str) -> None:
    """A text is refused only if a quote is bare or a backslash escapes nothing."""
    pairs = text
    for index in range(len(text)):  # from left to right: "\\\\," is a backslash, then a comma
        if pairs[index : index + 1] == "\\" and pairs[index + 1 : index + 2] in (",", "\\", '"'):
            pairs = pairs[:index] + "xx" + pairs[index + 2 :]
    bad = "\\" in pairs or '"' in pairs
    try:
        items = split_items(text)
    except MountError:
        assert bad
    else:
        assert not bad
        assert len(items) == pairs.count(",") + 1
        assert sum(map(len, items)) == len(text) - len(items) + 1 - pairs.count("xx")


def test_help_is_grouped_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option is once in the help, below its topic, in 80 columns, with fstab and examples."""
    monkeypatch.setenv("COLUMNS", "200")
    said = run("--help").stdout
    assert said == run("-h").stdout
    lines = said.splitlines()
    assert max(map(len, lines)) <= 80
    topics = [line for line in lines if re.fullmatch(r"[A-Z][A-Za-z ]+:", line)]
    assert topics == [
        "Arguments:",
        "Bucket options:",
        "AWS credentials options:",
        "Mount options:",
        "Writing options:",
        "Client options:",
        "New object options:",
        "Caching options:",
        "Metrics options:",
        "Logging options:",
        "Options:",
        "Examples:",
    ]
    for option in cli.main.params:
        if option.name not in ("bucket", "directory") and not getattr(option, "hidden", False):
            name = max(option.opts, key=len) if option.name != "throughput_gbps" else option.opts[0]
            listed = [line for line in lines if f"{name} " in line + " " and line[:3] == "  -"]
            assert len(listed) == 1, name
    assert "s3://my-bucket/a/ /mnt/data fuse.mount-s3 _netdev,ro" in said


def test_version() -> None:
    """--version and -V print only the program and its version."""
    for option in ("--version", "-V"):
        assert run(option).stdout == f"mount-s3 {mountpoint.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    """The command line loads neither the CRT nor FUSE nor botocore."""
    program = (
        "import sys; from mountpoint.cli import main;"
        "print([name for name in ('awscrt', 'llfuse', 'botocore') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("mode", [(), ("--foreground",)])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            MountError("no such bucket\x1b[2J", "check it"),
            r"Error: no such bucket\x1b[2J\ncheck it",
        ),
        (ValueError("bad"), "Error: unexpected error: ValueError: bad (test_main.py:"),
    ],
)
def test_errors_of_the_mount(
    mounted: Mounted,
    monkeypatch: pytest.MonkeyPatch,
    mode: tuple[str, ...],
    error: Exception,
    said: str,
) -> None:
    """An error of the mount, expected or not, is two lines and exit code 1."""

    def fail(config: Config, on_ready: Callable[[], None]) -> int:
        raise error

    def in_background(work: Callable[[Callable[[], None]], int], log_hint: str) -> None:
        try:
            work(lambda: None)
        except ValueError as error:
            raise daemon.unexpected(error, log_hint) from None

    monkeypatch.setattr(cli, "_mount", fail)
    monkeypatch.setattr(daemon, "run_in_background", in_background)
    result = run("bucket", "/mnt", "--no-keep-alive", *mode)
    assert result.exit_code == 1
    assert result.stderr.replace("\n", r"\n").startswith(said)
    assert "Traceback" not in result.output


def test_exit_status_of_the_foreground_is_the_mounts(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the foreground the exit code is that of the mount."""
    monkeypatch.setattr(cli, "_mount", lambda config, on_ready: 3)
    assert run("bucket", "/mnt", "--no-keep-alive", "-f").exit_code == 3


@pytest.mark.slow
def test_bad_log_filter_reaches_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the real background process reaches the terminal, with exit code 1."""
    monkeypatch.setenv("MOUNTPOINT_LOG", "debgu")
    program = "from mountpoint.cli.main import main; main(prog_name='mount-s3')"
    done = subprocess.run(
        [sys.executable, "-c", program, "bucket", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: MOUNTPOINT_LOG: cannot understand 'debgu'\n")
    assert log_location(LogConfig()) not in done.stderr


# --- Completion ---


def ask(**environ: str) -> str:
    """Return what the program, in a process of its own, says to a shell that asks it."""
    code = "import sys; sys.argv[0] = 'mount-s3'; from mountpoint.cli.main import main; main()"
    ours = {name: text for name, text in os.environ.items() if name != "AWS_PROFILE"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=ours | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--metadata-t", "plain,--metadata-ttl"),
        ("--attributes k", "plain,keep"),
        ("bucket /m", "dir,/m"),
        ("--log-directory /v", "dir,/v"),
        ("--staged-writes /v", "dir,/v"),
        ("--ca-bundle c", "file,c"),
        ("--profile wo", "plain,work"),
    ],
)
def test_completion(words: str, expected: str, tmp_path: Path) -> None:
    """bash asks the program for completions."""
    (tmp_path / "config").write_text("[default]\n[profile work]\n[profile home]\n")
    environ: dict[str, str | None] = {
        "_MOUNT_S3_COMPLETE": "bash_complete",
        "COMP_WORDS": f"mount-s3 {words}",
        "COMP_CWORD": str(len(words.split())),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_PROFILE": None,
    }
    result = CliRunner().invoke(cli.main, prog_name="mount-s3", env=environ)
    assert result.stdout.splitlines() == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    """Each shell gets a script that names the program."""
    said = ask(_MOUNT_S3_COMPLETE=f"{shell}_source")
    assert "_MOUNT_S3_COMPLETE" in said
    assert "mount-s3" in said
