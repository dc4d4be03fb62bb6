"""The status of mounts as text, from made-up answers."""

from mountpoint.ctl import status
from mountpoint.system.kernel import FuseMount
from tests.unit.ctl.answers import STATUS

FULL = STATUS | {
    "version": "1.2.3", "read_only": False, "options": ["--allow-delete"], "endpoint": "s3.x",
    "rates": {"read_bytes_per_s": 1.5e6, "written_bytes_per_s": 0, "requests_per_s": 2.5},
    "keep_alive": False, "restarts": 0,
    "memory_held_bytes": 5 << 20, "memory_limit_bytes": 256 << 20, "trouble": "",
    "data_plane": "native", "cache_directory": "/c", "cache_limit_bytes": 64 << 20,
    "cache_bucket": "b--x-s3",
    "log": "see the newest log in /var/log/mount-s3",
    "being_written": [{"path": "/a", "size_bytes": 10_000_000, "pending_bytes": 4_000_000}],
}  # fmt: skip


def test_status_in_lines() -> None:
    """The lines for a user, the most important first."""
    assert status.text([FULL], []).splitlines() == [
        "bucket at /mnt",
        "  running    for 1 min, process 7",
        "  changes    new files, --allow-delete",
        "  endpoint   s3.x, region eu-central-1",
        "  rates      1.5 MB/s read, 0 B/s written, 2.5 requests/s",
        "  memory     48 MiB resident; data 5 of 256 MiB (--memory-target)",
        "  files      1 open, 1 file being written (4 MB not yet in S3)",
        "  data plane native",
        "  cache      /c, at most 64 MiB; shared in bucket b--x-s3",
        "  log        see the newest log in /var/log/mount-s3",
    ]


def test_status_of_a_kept_mount() -> None:
    """A mount with a keeper says how often it was restarted."""
    for restarts, expected in ((0, "restarted if it dies"), (2, "restarted 2 times")):
        found = status.text([FULL | {"keep_alive": True, "restarts": restarts}], [])
        running = f"  running    for 1 min, process 7, {expected}"
        assert found.splitlines()[1] == running


def test_status_of_others() -> None:
    """Mounts with failures, read-only, with long texts, of another version, or dead."""
    troubled = FULL | {
        "trouble": "all requests of the last 12 s have failed: SlowDown",
        "read_only": True,
        "log": "see the newest log in /" + "long/" * 20,
    }
    found = status.text([troubled, STATUS | {"version": "0.9"}], [FuseMount("/dead", 0)], 60)
    first, second, third = found.split("\n\n")
    assert first.splitlines()[1] == "  trouble    all requests of the last 12 s have failed:"
    assert first.splitlines()[2] == "             SlowDown"
    assert "  changes    none, it is read-only" in first
    assert first.splitlines()[-1] == "             /" + "long/" * 20
    assert second.startswith("bucket at /mnt\n  version    0.9, not that of")
    assert third == "/dead does not answer"
    assert status.text([], []) == "nothing is mounted"
