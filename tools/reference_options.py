"""The options and variables of AWS's mount-s3 1.24, and how ours differ.

Names, defaults and variables are from mountpoint-s3/src/cli.rs, doc/CONFIGURATION.md,
doc/LOGGING.md and the changelog of https://github.com/awslabs/mountpoint-s3. Options that only
builds with other features have (`--cache-block-size`) are omitted.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """An option of the reference. `differs` says how ours differs; "" means not at all.

    `default` is worded as in our own help; "" for flags and other options without one.
    """

    name: str
    default: str = ""
    differs: str = ""


OPTIONS = (
    Known("--prefix"),
    Known(
        "--region",
        "detected",
        "AWS_DEFAULT_REGION, the profile's `region` and an ARN also set it",
    ),
    Known("--endpoint-url", "the region's", "AWS_ENDPOINT_URL_S3 and the profile also set it"),
    Known("--force-path-style"),
    Known("--dual-stack", differs="AWS_USE_DUALSTACK_ENDPOINT and the profile also set it"),
    Known("--transfer-acceleration"),
    Known("--requester-pays"),
    Known("--expected-bucket-owner"),
    Known(
        "--bucket-type",
        "by name and endpoint",
        "mount-s3 sends the appends and renames of directory buckets only to AWS "
        "([why](directory-buckets.md#how-they-are-recognised))",
    ),
    Known(
        "--no-sign-request", differs="an error together with `--profile`; AWS's ignores `--profile`"
    ),
    Known("--profile", differs="supports SSO, too"),
    Known("--read-only"),
    Known("--auto-unmount"),
    Known("--allow-root"),
    Known("--allow-other"),
    Known("--uid", "you", "may be 0"),
    Known("--gid", "yours", "may be 0"),
    Known("--dir-mode", "0755"),
    Known("--file-mode", "0644"),
    Known("-o", differs="may be combined with other options"),
    Known("--foreground"),
    Known("--allow-delete"),
    Known("--allow-overwrite"),
    Known("--incremental-upload", differs="fails to mount a bucket that does not support it"),
    Known(
        "--maximum-throughput-gbps",
        "the EC2 instance's, else 10",
        "may be a fraction; with an endpoint URL mount-s3 does not ask the instance",
    ),
    Known("--max-threads", "16"),
    Known(
        "--memory-target",
        "95 % of the machine's or container's, at least 512",
        "sets the memory for data, 16 MiB or more; the default is a part of the machine's "
        "memory; it does not limit the number of open files",
    ),
    Known("--part-size", "8388608", "may be combined with the next two options, which override it"),
    Known("--read-part-size", "8388608", "by default as `--part-size`"),
    Known("--write-part-size", "8388608", "by default as `--part-size`"),
    Known("--upload-checksums", "crc32c"),
    Known("--bind"),
    Known("--user-agent-prefix"),
    Known("--storage-class"),
    Known("--sse"),
    Known("--sse-kms-key-id", differs="accepts IDs and aliases, not only ARNs"),
    Known("--infer-content-type"),
    Known(
        "--metadata-ttl",
        "minimal, with a cache 60",
        "`0` keeps nothing; in AWS's it means `minimal`",
    ),
    Known("--negative-metadata-ttl", "as --metadata-ttl"),
    Known(
        "--cache",
        differs="survives restarts, and several mounts may share it ([cache.md](cache.md))",
    ),
    Known("--max-cache-size", "leaves 5 % of the disk free"),
    Known("--cache-xz", differs="any bucket, also of other stores"),
    Known("--log-directory", "syslog"),
    Known("--debug", differs="without it mount-s3 logs warnings; AWS's also logs the info level"),
    Known("--debug-crt"),
    Known("--no-log"),
    Known("--log-metrics", differs="logs only values that have changed, with rates and quantiles"),
    Known("--otlp-endpoint", differs="needs the extra `otlp`: `pip install 'mount-s3[otlp]'`"),
    Known("--otlp-export-interval", "60"),
    Known("--version"),
    Known("--help"),
)

#: Variables in its documents, without those of credentials.
VARIABLES = {
    "MOUNTPOINT_LOG": "",
    "AWS_REGION": "",
    "AWS_PROFILE": "",
    "AWS_ENDPOINT_URL": "",
    "AWS_MAX_ATTEMPTS": "the default of AWS's is 10; mount-s3 by default retries "
    "until `--read-timeout`",
    "AWS_EC2_METADATA_DISABLED": "",
    "HTTPS_PROXY": "",
    "NO_PROXY": "",
    "UNSTABLE_MOUNTPOINT_MAX_PREFETCH_WINDOW_SIZE": "ignored: read-ahead grows while a program "
    "reads on, and `--memory-target` bounds it",
}
