"""The program's options as frozen dataclasses, one per component, checked when created.

A new option is a field of its component's class here, and an option of that name in `cli/main`.
`cli` builds a `Config`, and `mount.run` gives each component its part. Nothing else reads our
options or environment variables.
"""

import math
import os
import re
import socket
from dataclasses import dataclass, field, replace
from typing import Literal

from mountpoint.errors import MountError

MIB = 1 << 20

#: How long a part of 8 MiB takes on S3: 20 to 30 ms for the first byte, then 90 MB/s. To fill the
#: link, as many bytes must be in flight as it carries in this time.
REQUEST_S = 0.128
#: Bandwidth for one event loop of the client, which moves 1.5 to 2 GB/s (12 to 16 Gbit/s). With one
#: loop the default for the link is the same as in mountpoint-s3.
LOOP_GBPS = 10.0
#: There is a loop for two cores. The other core is for the kernel's copies and the programs: on two
#: cores one loop was best. On sixteen, 1, 2, 4, 8 and 12 loops moved 2.0, 3.6, 7.2, 12.4 and 17.4
#: GB/s; more were not measured.
CORES_PER_LOOP = 2
MAX_LOOPS = 12

#: General purpose buckets have 3 to 63 of these characters.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
#: Upper case and "_" are for old buckets in us-east-1 and for other stores.
#: "TENANT:BUCKET" is Ceph's, and ":BUCKET" is a Ceph bucket without a tenant:
#: https://docs.ceph.com/en/latest/radosgw/multitenancy/
BUCKET_NAME = re.compile(r"(?:[A-Za-z0-9_]*:)?[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
ARN = re.compile(r"arn:[a-z-]+:s3[a-z-]*:[a-z0-9-]*:\d*:[A-Za-z0-9/:._-]+")
#: us-east-1, us-gov-west-1, cn-north-1, us-iso-east-1, ap-southeast-7, eusc-de-east-1
REGION = re.compile(r"[a-z]{2,4}(-[a-z]+){1,3}-\d{1,2}")
#: The path is for a store behind a proxy that serves several stores on one host.
ENDPOINT_URL = re.compile(r"https?://[^\s/?#@]+(?:/[\w.~%+-]+)*/?", re.ASCII)
OTLP_URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
#: ADDRESS:PORT; an IPv6 address is in brackets.
LISTEN_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([\w.-]*)):([0-9]{1,5})")
OTHER_REGION = re.compile(r"[\w.-]{1,64}")

BucketType = Literal["general-purpose", "directory"]

#: Default age of names and attributes, in seconds: mountpoint-s3's bound for files that existed.
#: With less, the kernel asks again for each name of a listing.
MINIMAL_TTL_S = 1.0
#: The value of "indefinite", and the longest that may be set: 100 years, as in mountpoint-s3.
INDEFINITE_TTL_S = 100 * 365 * 86_400.0

#: (uid_t) -1 means "unchanged" to chown(2), so it cannot be a user's or group's number.
MAX_ID = (1 << 32) - 2


def check_range(option: str, value: float, low: float, high: float, unit: str = "") -> None:
    """Raise MountError unless `low <= value <= high` (NaN never is)."""
    if not low <= value <= high:
        unit = f" {unit}" if unit else ""
        raise MountError(
            f"{option} {value:.15g} is out of range",
            f"it must be {low:.15g} to {high:.15g}{unit}",
        )


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """Which bucket, where it is, and how to address it.

    `name` is a bucket name, an access point alias or an ARN. `prefix` is "" or ends in "/".
    `region` None: find it out. With `expected_owner` (an account id) requests fail if the bucket
    belongs to another account. `bucket_type` None: the endpoint's rules decide.
    """

    name: str
    prefix: bytes = b""
    region: str | None = None
    endpoint_url: str | None = None
    force_path_style: bool = False
    dual_stack: bool = False
    fips: bool = False
    transfer_acceleration: bool = False
    requester_pays: bool = False
    expected_owner: str | None = None
    bucket_type: BucketType | None = None

    def __post_init__(self) -> None:
        if not (BUCKET_NAME.fullmatch(self.name) or ARN.fullmatch(self.name)):
            hint = "a bucket name has 3 to 63 lower-case letters, digits, '.' and '-'"
            if self.name.startswith("/"):
                # mount(8) turns a name into a path if a file in the current directory has it.
                hint = f"in /etc/fstab, and with mount(8), write s3://{os.path.basename(self.name)}"
            raise MountError(f"'{self.name}' is not a bucket name, access point alias or ARN", hint)
        if self.prefix and (not self.prefix.endswith(b"/") or self.prefix.startswith(b"/")):
            shown = self.prefix.decode("utf-8", "replace")
            fixed = shown.strip("/") + "/"
            raise MountError(
                f"prefix '{shown}' must end with '/', and must not begin with it",
                f"use --prefix {fixed}" if fixed != "/" else "omit --prefix",
            )
        # Other stores have regions of any name ("garage", "auto").
        region = REGION if self.endpoint_url is None else OTHER_REGION
        if self.region is not None and not region.fullmatch(self.region):
            raise MountError(
                f"'{self.region}' is not a region name", "for example: --region us-east-1"
            )
        if self.endpoint_url is not None and not ENDPOINT_URL.fullmatch(self.endpoint_url):
            raise MountError(
                f"'{self.endpoint_url}' is not an endpoint URL",
                "for example: --endpoint-url https://s3.example.com",
            )
        if self.expected_owner is not None and not re.fullmatch(r"\d{12}", self.expected_owner):
            raise MountError(
                f"'{self.expected_owner}' is not an account id",
                "it has 12 digits: --expected-bucket-owner 111122223333",
            )
        if self.transfer_acceleration and self.force_path_style:
            raise MountError(
                "--transfer-acceleration and --force-path-style exclude each other",
                "acceleration works only with virtual-host addresses: omit one of them",
            )
        if self.transfer_acceleration and self.endpoint_url:
            raise MountError(
                "--transfer-acceleration and --endpoint-url exclude each other",
                "acceleration has its own endpoint: omit one of them",
            )


@dataclass(frozen=True, slots=True)
class CredentialsConfig:
    """The credentials that sign the requests; none with `no_sign_request`."""

    profile: str | None = None
    no_sign_request: bool = False

    def __post_init__(self) -> None:
        if self.profile is not None and self.no_sign_request:
            raise MountError(
                "--profile and --no-sign-request exclude each other",
                "unsigned requests need no credentials: omit one of them",
            )


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How to talk to S3.

    `throughput_gbps` is the link's bandwidth in Gbit/s; None: not given (`s3.aws.ec2`).
    `event_loops` is the number of threads that move bodies.
    `connect_timeout_ms` and `try_timeout_s` limit one connection attempt and one metadata request,
    each without retries. A request is tried `max_tries` times (None: as often as time allows).
    `interfaces` are the network interfaces that lead to S3; without any, the machine's routes
    decide. With `verify_checksums` bodies are compared with S3's checksums (`s3.wire.checksum`).
    With `native`, bodies arrive without the interpreter where awscrt permits it
    (`s3.crt.native.plane`).
    """

    throughput_gbps: float | None = None
    part_size_bytes: int = 8 * MIB
    event_loops: int = 1
    ca_bundle: str | None = None
    connect_timeout_ms: int = 5_000
    try_timeout_s: float = 10.0
    max_tries: int | None = None
    verify_checksums: bool = True
    interfaces: tuple[str, ...] = ()
    user_agent_prefix: str = ""
    native: bool = True

    def __post_init__(self) -> None:
        # mountpoint-s3 starts at 1; a slow link is worth stating as well.
        if self.throughput_gbps is not None:
            check_range("--maximum-throughput-gbps", self.throughput_gbps, 0.01, 10_000, "Gbps")
        if self.ca_bundle is not None and not os.path.isfile(self.ca_bundle):
            raise MountError(
                f"the CA bundle '{self.ca_bundle}' is not a file",
                "--ca-bundle, AWS_CA_BUNDLE and the profile's ca_bundle must name a PEM file",
            )
        for name in self.interfaces:
            known = [each for _, each in socket.if_nameindex()]
            if name not in known:
                raise MountError(
                    f"there is no network interface '{name}'", f"--bind takes {', '.join(known)}"
                )
        if not re.fullmatch(r"[\x20-\x7e]{0,256}", self.user_agent_prefix):
            raise MountError(
                "--user-agent-prefix is too long, or not plain text",
                "use up to 256 printable ASCII characters",
            )

    @property
    def link_gbps(self) -> float:
        """The link's bandwidth in Gbit/s; if it is not given, what the event loops can use."""
        return self.throughput_gbps or self.event_loops * LOOP_GBPS


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """How objects are read.

    `part_size_bytes` is the size of the largest GET, `memory_bytes` the budget of all buffers, and
    `max_ahead_bytes` how much of it may be fetched ahead, for all readers together. `event_loops`
    is the client's. After `stall_s` without a byte a GET is sent again (`read.stream` adds time for
    its size). `timeout_s` limits a read, or any other operation that waits for S3, with all
    retries.
    """

    part_size_bytes: int = 8 * MIB
    memory_bytes: int = 256 * MIB
    stall_s: float = 5.0
    timeout_s: float = 60.0
    max_ahead_bytes: int = 160 * MIB
    event_loops: int = 1


#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MIN_PART_BYTES = 5 * MIB
MAX_PART_BYTES = 5 << 30


@dataclass(frozen=True, slots=True)
class WriteConfig:
    """How objects are written.

    `part_size_bytes` is the size of the first parts of larger files. `checksum` None sends no
    checksums. If `storage_class`, `sse` and `sse_kms_key_id` are None, the bucket decides. With
    `content_types` the content type follows from the object's name. `max_ahead_bytes` may be in
    flight for all files together. `stall_s` is how long one try may be silent, besides the time
    that its size, or similar requests, need.
    """

    part_size_bytes: int = 8 * MIB
    checksum: Literal["crc32c", "crc64nvme"] | None = "crc32c"
    storage_class: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    content_types: bool = False
    # Twelve connections to S3 carry 1 GB/s. More would only cost memory, ours and the CRT's copy.
    max_ahead_bytes: int = 96 * MIB
    stall_s: float = 5.0

    def __post_init__(self) -> None:
        low, high = MIN_PART_BYTES, MAX_PART_BYTES
        check_range("--write-part-size", self.part_size_bytes, low, high, "bytes")
        if self.storage_class is not None and not re.fullmatch(r"[A-Z_-]+", self.storage_class):
            raise MountError(
                f"'{self.storage_class}' is not a storage class",
                "for example: --storage-class INTELLIGENT_TIERING",
            )
        if self.sse not in (None, "AES256", "aws:kms", "aws:kms:dsse"):
            raise MountError(
                f"--sse {self.sse} is unknown", "it must be AES256, aws:kms or aws:kms:dsse"
            )
        if self.sse_kms_key_id is not None:
            if self.sse not in ("aws:kms", "aws:kms:dsse"):
                raise MountError(
                    "--sse-kms-key-id needs --sse aws:kms or --sse aws:kms:dsse",
                    "only these types use a KMS key: add --sse, or omit the key",
                )
            if not re.fullmatch(r"[\w:/+=,.@-]+", self.sse_kms_key_id, re.ASCII):
                raise MountError(
                    f"'{self.sse_kms_key_id}' is not a key id, alias or ARN",
                    "for example: --sse-kms-key-id arn:aws:kms:us-east-1:111122223333:key/...",
                )


@dataclass(frozen=True, slots=True)
class FileSystemConfig:
    """The attributes of files and directories, and how old cached answers may be.

    `ttl_s` is the maximum age of names, attributes and, without `asks_on_open`, of the version that
    is opened. `negative_ttl_s` is the maximum age of a name's absence. With `inode32` inode numbers
    have 32 bits.
    """

    uid: int
    gid: int
    dir_mode: int = 0o755
    file_mode: int = 0o644
    ttl_s: float = MINIMAL_TTL_S
    negative_ttl_s: float = 0.0
    asks_on_open: bool = True
    inode32: bool = False

    def __post_init__(self) -> None:
        check_range("--metadata-ttl", self.ttl_s, 0, INDEFINITE_TTL_S, "seconds")
        check_range("--negative-metadata-ttl", self.negative_ttl_s, 0, INDEFINITE_TTL_S, "seconds")
        check_range("--uid", self.uid, 0, MAX_ID)
        check_range("--gid", self.gid, 0, MAX_ID)
        for option, mode in (("--dir-mode", self.dir_mode), ("--file-mode", self.file_mode)):
            if not 0 <= mode <= 0o777:
                raise MountError(
                    f"{option} {mode:04o} is out of range",
                    "it must be 0000 to 0777: permissions of user, group and others",
                )


@dataclass(frozen=True, slots=True)
class ChangeConfig:
    """Which changes are allowed besides writing new files.

    With `incremental_upload`, for directory buckets, files grow in the bucket while they are
    written. `keep_directories` gives new directories marker objects. With a `staging_directory`
    files are first written there, and may take `staging_limit_bytes` (None: a share of the free
    space). `attributes` says what happens when programs set modes, owners and times (`fs/setattr`).
    """

    allow_overwrite: bool = False
    allow_delete: bool = False
    allow_rename: bool = False
    allow_append: bool = False
    incremental_upload: bool = False
    keep_directories: bool = False
    staging_directory: str | None = None
    staging_limit_bytes: int | None = None
    attributes: Literal["refuse", "ignore", "keep"] = "refuse"

    @property
    def keeps_attributes(self) -> bool:
        """Whether the attributes that programs set are kept and shown."""
        return self.attributes == "keep"

    def __post_init__(self) -> None:
        if self.incremental_upload and self.staging_directory is not None:
            raise MountError(
                "--incremental-upload and --staged-writes exclude each other",
                "staged files are uploaded whole: omit one of them",
            )


#: The ttl of names and versions if there is a data cache and none is given, as in mountpoint-s3.
CACHE_TTL_S = 60.0


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The data caches: on disk in `directory`, and shared in `bucket`; None: there is none.

    The blocks take `max_bytes` on disk; None: they leave a share of the disk free. `writes`: files
    that are written here are kept, too.
    """

    directory: str | None = None
    max_bytes: int | None = None
    bucket: str | None = None
    writes: bool = False

    def __post_init__(self) -> None:
        if self.writes and self.directory is None and self.bucket is None:
            raise MountError("--cache-writes is given without a cache", "add --cache or --cache-xz")


@dataclass(frozen=True, slots=True)
class MountConfig:
    """How the bucket is mounted. `channel`: negotiate reads of 1 MiB with the kernel.

    `fsname` is the source that the kernel's tables show (None: the program's name).
    `kernel_options` are more options of mount(8) for the kernel, such as noexec. `directory` is ""
    if nothing is mounted and no directory was given. `keep_alive`: the mount goes on when its
    process dies. With a `descriptor`, of /dev/fuse, it is mounted already, and `directory` is only
    a name for it.
    """

    directory: str
    descriptor: int | None = None
    read_only: bool = False
    auto_unmount: bool = False
    keep_alive: bool = False
    allow_root: bool = False
    allow_other: bool = False
    max_threads: int = 16
    channel: bool = True
    fsname: str | None = None
    kernel_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range("--max-threads", self.max_threads, 1, 1024)
        if self.fsname == "":
            raise MountError("--fsname is empty", "give a name, or omit the option")
        if self.keep_alive and not self.channel:
            raise MountError(
                "--keep-alive does not work with --no-channel", "omit one of the two options"
            )
        if self.allow_root and self.allow_other:
            raise MountError(
                "--allow-root and --allow-other exclude each other",
                "--allow-other includes root: omit --allow-root",
            )
        for given, name in (
            (self.read_only, "--read-only"),
            (self.auto_unmount, "--auto-unmount"),
            (self.fsname is not None, "--fsname"),
            (self.kernel_options, f"-o {','.join(self.kernel_options)}"),
        ):
            if given and self.descriptor is not None:
                raise MountError(
                    f"{name} has no effect with {self.directory}, which is already mounted",
                    "it concerns the process that mounts: see docs/containers.md",
                )


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Where log lines go, and which lines.

    `directory` None means syslog, or stderr in the foreground. `foreground` also says whether the
    program stays there. `filter` is the text of MOUNTPOINT_LOG, or None.
    """

    directory: str | None = None
    foreground: bool = False
    debug: bool = False
    debug_crt: bool = False
    no_log: bool = False
    metrics: bool = False
    filter: str | None = None

    def __post_init__(self) -> None:
        if self.no_log and (self.directory or self.debug or self.debug_crt or self.metrics):
            raise MountError(
                "--no-log excludes --log-directory, --debug, --debug-crt and --log-metrics",
                "to get a log, omit --no-log",
            )


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """Where metrics go: to an OTLP collector at intervals, and to a Prometheus scraper."""

    otlp_endpoint: str | None = None
    otlp_interval_s: int = 60
    prometheus: str | None = None

    def __post_init__(self) -> None:
        check_range("--otlp-export-interval", self.otlp_interval_s, 1, 86_400, "seconds")
        if self.otlp_endpoint is not None and not OTLP_URL.fullmatch(self.otlp_endpoint):
            raise MountError(
                f"'{self.otlp_endpoint}' is not the URL of a collector",
                "for example: --otlp-endpoint http://localhost:4318; put credentials into "
                "OTEL_EXPORTER_OTLP_HEADERS",
            )
        if self.prometheus is not None:
            _ = self.prometheus_address

    @property
    def prometheus_address(self) -> tuple[str, int]:
        """Host and port of `prometheus`. Without a host it listens on 127.0.0.1."""
        found = LISTEN_ADDRESS.fullmatch(self.prometheus or "")
        if found is None or int(found[3]) > 65_535:
            raise MountError(
                f"--prometheus '{self.prometheus}' is not ADDRESS:PORT",
                "for example: --prometheus :9100, which is 127.0.0.1:9100, or [::1]:9100",
            )
        return found[1] or found[2] or "127.0.0.1", int(found[3])


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of all components."""

    bucket: BucketConfig
    mount: MountConfig
    filesystem: FileSystemConfig
    change: ChangeConfig = field(default_factory=ChangeConfig)
    credentials: CredentialsConfig = field(default_factory=CredentialsConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    write: WriteConfig = field(default_factory=WriteConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def with_throughput(self, gbps: float) -> "Config":
        """Return these settings for a link of `gbps` Gbit/s, with no more loops than it can use."""
        loops = min(self.client.event_loops, math.ceil(gbps / LOOP_GBPS))
        max_ahead_bytes = int(gbps * 1e9 / 8 * REQUEST_S)
        client = replace(self.client, throughput_gbps=gbps, event_loops=loops)
        read = replace(self.read, max_ahead_bytes=max_ahead_bytes, event_loops=loops)
        return replace(self, client=client, read=read)


def event_loops(cores: int) -> int:
    """Return the number of event loops for this many cores. Pure."""
    return min(max(cores // CORES_PER_LOOP, 1), MAX_LOOPS)
