"""Turn options into a `Config`: defaults from the machine, absolute paths, checked values.

An option sets the field of its name. Here are those that have no such field, or need more: units,
combinations, values that depend on the machine.

It does not access the directory, the bucket or the credentials; `mount/run` does.
"""

import os
from dataclasses import fields
from typing import Any

from mountpoint.cli.command import MINIMAL
from mountpoint.cli.fstab import CONTEXTS, kernel_options
from mountpoint.config import (
    CACHE_TTL_S,
    MAX_PART_BYTES,
    MIB,
    MIN_PART_BYTES,
    MINIMAL_TTL_S,
    BucketConfig,
    CacheConfig,
    ChangeConfig,
    ClientConfig,
    Config,
    CredentialsConfig,
    FileSystemConfig,
    LogConfig,
    MetricsConfig,
    MountConfig,
    ReadConfig,
    WriteConfig,
    check_range,
    event_loops,
)
from mountpoint.errors import MountError
from mountpoint.fuse.fd_mount import number_of
from mountpoint.system import kernel
from mountpoint.system.cpus import usable_cores
from mountpoint.system.memory import total_bytes
from mountpoint.system.mounts import real_path

#: Below 64 KiB a part is mostly overhead (0.3 ms of CPU per ranged GET).
MIN_READ_PART_BYTES = 64 << 10
#: Reads split larger parts, so that a part ahead and a second reader fit into memory.
MAX_READ_PART_BYTES = 64 * MIB

#: Default memory for reads: a quarter of the machine's, within these limits, but never more than
#: half of it. The upper limit grows with the event loops, because each of them can serve more
#: readers at full speed.
MIN_MEMORY_BYTES = 128 * MIB
LOOP_MEMORY_BYTES = 1024 * MIB
MAX_MEMORY_BYTES = 4096 * MIB
#: Valid values of the option, in MiB.
MEMORY_MIB = (16, 1 << 20)

#: Valid sizes of the space for staged files, in MiB.
STAGED_MIB = (16, 1 << 30)
CACHE_MIB = (16, 1 << 40)


def make_config(
    bucket: str,
    directory: str,
    *,
    prefix: str | None,
    uid: int | None,
    gid: int | None,
    fsname: str | None,
    ca_bundle: str | None,
    keep_alive: bool,
    no_keep_alive: bool,
    **options: Any,
) -> Config:
    """Return the checked configuration from click's options.

    Options that are parameters here give the field of their name another value. Paths become
    absolute. Raises MountError for values out of range and contradictions.
    """
    name, prefix = split_bucket(bucket, prefix)
    part_size = _part_size(options, "part_size", MIN_READ_PART_BYTES)
    read_part_size = _part_size(options, "read_part_size", MIN_READ_PART_BYTES) or part_size
    write_part_size = _part_size(options, "write_part_size", MIN_PART_BYTES)
    check_range("--read-timeout", options["timeout_s"], 1, 86_400, "seconds")
    if options["otlp_interval_s"] is not None and options["otlp_endpoint"] is None:
        raise MountError("--otlp-export-interval is given without --otlp-endpoint", "add a URL")
    checksum = options["upload_checksums"]
    ca_bundle = ca_bundle or os.environ.get("AWS_CA_BUNDLE") or None
    descriptor = number_of(directory)
    native = not options["no_native"]
    # The interpreter is no faster with more loops.
    loops = event_loops(usable_cores()) if native else 1
    if fsname is None and descriptor is None:
        # mount -a compares it with the first field of the line, in its original form.
        fsname = bucket if options["fstab_options"] else source(name, prefix)
    config = Config(
        bucket=BucketConfig(name=name, prefix=os.fsencode(prefix), **_same(BucketConfig, options)),
        credentials=CredentialsConfig(**_same(CredentialsConfig, options)),
        mount=MountConfig(
            directory=_absolute(directory) if directory and descriptor is None else directory,
            descriptor=descriptor,
            channel=not options["no_channel"],
            keep_alive=_keep_alive(options, keep_alive, no_keep_alive),
            fsname=fsname,
            kernel_options=_kernel_options(options["fstab_options"]),
            **_same(MountConfig, options),
        ),
        filesystem=FileSystemConfig(
            uid=os.getuid() if uid is None else uid,
            gid=os.getgid() if gid is None else gid,
            **_ttls(
                options["metadata_ttl"],
                options["negative_metadata_ttl"],
                cached=options["cache"] is not None or options["cache_bucket"] is not None,
            ),
            **_same(FileSystemConfig, options),
        ),
        client=ClientConfig(
            part_size_bytes=part_size,
            ca_bundle=ca_bundle and _absolute(os.path.expanduser(ca_bundle)),
            verify_checksums=options["read_checksums"] == "on",
            native=native,
            event_loops=loops,
            **_same(ClientConfig, options),
        ),
        change=ChangeConfig(
            **_staging(options["staged_writes"], options["staged_limit"]),
            **_same(ChangeConfig, options),
        ),
        read=ReadConfig(
            part_size_bytes=min(read_part_size, MAX_READ_PART_BYTES),
            memory_bytes=memory_bytes(options["memory_target"], loops),
            event_loops=loops,
            **_same(ReadConfig, options),
        ),
        write=WriteConfig(
            # The smallest parts for reads are too small for uploads.
            part_size_bytes=write_part_size or max(part_size, MIN_PART_BYTES),
            checksum=None if checksum == "off" else checksum,
            **_same(WriteConfig, options),
        ),
        log=LogConfig(
            directory=options["log_directory"] and _absolute(options["log_directory"]),
            filter=os.environ.get("MOUNTPOINT_LOG") or None,
            metrics=options["log_metrics"],
            **_same(LogConfig, options),
        ),
        cache=_cache(options),
        metrics=MetricsConfig(**_same(MetricsConfig, options)),
    )
    gbps = options["throughput_gbps"]
    return config if gbps is None else config.with_throughput(gbps)


def _part_size(options: dict[str, Any], name: str, min_bytes: int) -> int:
    """Return an option's part size in bytes; 0 if it is not given."""
    size = options[name]
    if size is None:
        return 0
    check_range(f"--{name.replace('_', '-')}", size, min_bytes, MAX_PART_BYTES, "bytes")
    return int(size)


def _keep_alive(options: dict[str, Any], wanted: bool, unwanted: bool) -> bool:
    """Whether the mount goes on when its process dies; that is the default where it can be."""
    if wanted and unwanted:
        raise MountError("--keep-alive and --no-keep-alive exclude each other", "omit one of them")
    return wanted or not (unwanted or options["auto_unmount"] or options["no_channel"])


def _staging(directory: str | None, limit_mib: int | None) -> dict[str, Any]:
    """Return the fields of `ChangeConfig` for staged writes."""
    if directory is None:
        if limit_mib is not None:
            raise MountError("--staged-limit is given without --staged-writes", "add a directory")
        return {}
    if limit_mib is not None:
        check_range("--staged-limit", limit_mib, *STAGED_MIB, "MiB")
    limit_bytes = None if limit_mib is None else limit_mib * MIB
    return {"staging_directory": _absolute(directory), "staging_limit_bytes": limit_bytes}


def _cache(options: dict[str, Any]) -> CacheConfig:
    """Return the settings of the data caches."""
    directory, limit_mib = options["cache"], options["max_cache_size"]
    bucket, writes = options["cache_bucket"], options["cache_writes"]
    if directory is None:
        if limit_mib is not None:
            raise MountError("--max-cache-size is given without --cache", "add a directory")
        return CacheConfig(bucket=bucket, writes=writes)
    if limit_mib is not None:
        check_range("--max-cache-size", limit_mib, *CACHE_MIB, "MiB")
    limit_bytes = None if limit_mib is None else limit_mib * MIB
    return CacheConfig(_absolute(directory), limit_bytes, bucket, writes)


def _ttls(ttl_s: float | None, negative_ttl_s: float | None, *, cached: bool) -> dict[str, Any]:
    """Return the two times to live as fields of `FileSystemConfig`."""
    if ttl_s is None:
        ttl_s = CACHE_TTL_S if cached else MINIMAL
    negative_ttl_s = ttl_s if negative_ttl_s is None else negative_ttl_s
    return {
        "ttl_s": MINIMAL_TTL_S if ttl_s == MINIMAL else ttl_s,
        "negative_ttl_s": max(negative_ttl_s, 0.0),
        "asks_on_open": ttl_s <= 0,
    }


def memory_bytes(target_mib: int | None, loops: int) -> int:
    """Return the memory for reads in bytes: the option's, or the default for this machine."""
    if target_mib is not None:
        check_range("--memory-target", target_mib, *MEMORY_MIB, "MiB")
        return target_mib * MIB
    total = total_bytes()
    max_bytes = min(loops * LOOP_MEMORY_BYTES, MAX_MEMORY_BYTES, total // 2)
    return min(max(total // 4, MIN_MEMORY_BYTES), max_bytes)


def split_bucket(bucket: str, prefix: str | None) -> tuple[str, str]:
    """Return the bucket's name and the prefix from a name or an s3:// URI and `--prefix`."""
    if not bucket.startswith("s3://"):
        return bucket, prefix or ""
    name, _, uri_prefix = bucket.removeprefix("s3://").partition("/")
    if name.startswith("arn:"):
        raise MountError(
            f"'{bucket}': an s3:// URI cannot contain an ARN",
            "give the ARN alone, and a prefix with --prefix",
        )
    if uri_prefix and prefix:
        raise MountError(
            f"'{bucket}' and --prefix {prefix} exclude each other",
            "give the prefix either in the URI or with --prefix",
        )
    return name, uri_prefix or prefix or ""


def source(name: str, prefix: str) -> str:
    """Return the source that mount(8), df(1) and findmnt(8) show."""
    return f"s3://{name}/{prefix}" if prefix else f"s3://{name}"


def _kernel_options(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the kernel's options; without SELinux no contexts, as in mount(8)."""
    found = kernel_options(texts)
    if kernel.knows("selinuxfs"):
        return found
    return tuple(each for each in found if each.partition("=")[0] not in CONTEXTS)


def _same(component: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are fields of `component`, except those that are not given."""
    names = [each.name for each in fields(component)]
    return {name: options[name] for name in names if options.get(name) is not None}


def _absolute(path: str) -> str:
    """Return the absolute path."""
    try:
        return real_path(path)
    except FileNotFoundError:  # a relative path whose directory is gone
        raise MountError(
            "the current directory does not exist any more", "give absolute paths"
        ) from None
