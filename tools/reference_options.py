"""The options and variables of AWS's mount-s3 1.24, and what is not the same here.

Facts of mountpoint-s3/src/cli.rs, doc/CONFIGURATION.md, doc/LOGGING.md and the changelog of
https://github.com/awslabs/mountpoint-s3: names, defaults, variables. Options that only builds with
other features have (`--cache-block-size`) are left out.
"""

from dataclasses import dataclass

CACHE = "not yet: a cache on disk is work of its own"


@dataclass(frozen=True, slots=True)
class Known:
    """An option of the reference. `differs` is how ours is another one; "" is not at all.

    `default` is as our own help would say it, "" for none, and so for flags, which are off.
    `missing` is why there is none, where there is none.
    """

    name: str
    default: str = ""
    differs: str = ""
    missing: str = ""


OPTIONS = (
    Known("--prefix"),
    Known(
        "--region",
        "found",
        "also by AWS_DEFAULT_REGION, the profile's `region` and an ARN",
    ),
    Known("--endpoint-url", "the region's", "also by AWS_ENDPOINT_URL_S3 and the profile"),
    Known("--force-path-style"),
    Known("--dual-stack", differs="also by AWS_USE_DUALSTACK_ENDPOINT and the profile"),
    Known("--transfer-acceleration"),
    Known("--requester-pays"),
    Known("--expected-bucket-owner"),
    Known(
        "--bucket-type",
        "by name and endpoint",
        "appends and renames of directory buckets are sent to AWS only "
        "([why](directory-buckets.md#what-is-taken-for-one))",
    ),
    Known("--no-sign-request", differs="with `--profile` an error; there it wins silently"),
    Known("--profile", differs="SSO too"),
    Known("--read-only"),
    Known("--auto-unmount"),
    Known("--allow-root"),
    Known("--allow-other"),
    Known("--uid", "you", "may be 0"),
    Known("--gid", "yours", "may be 0"),
    Known("--dir-mode", "0755"),
    Known("--file-mode", "0644"),
    Known("-o", differs="other options may stand beside it"),
    Known("--foreground"),
    Known("--allow-delete"),
    Known("--allow-overwrite"),
    Known("--incremental-upload", differs="a bucket that cannot do it is not mounted"),
    Known(
        "--maximum-throughput-gbps",
        "the EC2 instance's, else 10",
        "may be a fraction; with an endpoint URL no instance is asked",
    ),
    Known("--max-threads", "16"),
    Known(
        "--memory-target",
        "95 % of the machine's or container's, at least 512",
        "it is the memory for data, from 16 MiB; by default a part of the machine's; "
        "it limits no open files",
    ),
    Known("--part-size", "8388608", "may stand beside the next two, which override it"),
    Known("--read-part-size", "8388608", "by default as `--part-size`"),
    Known("--write-part-size", "8388608", "by default as `--part-size`"),
    Known("--upload-checksums", "crc32c"),
    Known("--bind"),
    Known("--user-agent-prefix"),
    Known("--storage-class"),
    Known("--sse"),
    Known("--sse-kms-key-id", differs="ids and aliases too, not only ARNs"),
    Known("--infer-content-type"),
    Known(
        "--metadata-ttl",
        "minimal, with a cache 60",
        "`0` believes nothing; there it is `minimal`",
    ),
    Known("--negative-metadata-ttl", "as --metadata-ttl"),
    Known("--cache", missing=CACHE),
    Known("--max-cache-size", "5 % of the disk stay free", missing=CACHE),
    Known("--cache-xz", missing=CACHE),
    Known("--log-directory", "syslog"),
    Known("--debug", differs="without it warnings are logged; there also what is at info level"),
    Known("--debug-crt"),
    Known("--no-log"),
    Known("--log-metrics", differs="only what has changed, with rates and quantiles"),
    Known("--otlp-endpoint", differs="with the extra `otlp`: `pip install 'mount-s3[otlp]'`"),
    Known("--otlp-export-interval", "60"),
    Known("--version"),
    Known("--help"),
)

#: Variables that its documents name, besides those of credentials.
VARIABLES = {
    "MOUNTPOINT_LOG": "",
    "AWS_REGION": "",
    "AWS_PROFILE": "",
    "AWS_ENDPOINT_URL": "",
    "AWS_MAX_ATTEMPTS": "unset it is 10; here as often as `--read-timeout` has room for",
    "AWS_EC2_METADATA_DISABLED": "",
    "HTTPS_PROXY": "",
    "NO_PROXY": "",
    "UNSTABLE_MOUNTPOINT_MAX_PREFETCH_WINDOW_SIZE": "not read: what is fetched ahead is earned by "
    "reading on, and `--memory-target` bounds it",
}
