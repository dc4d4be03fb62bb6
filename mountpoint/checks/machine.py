"""Checks of this machine and user, by the rules of `mount/preflight`."""

import os
import pwd
import re

from mountpoint.cache.directory import check_directory, check_writable
from mountpoint.checks.checklist import Result, ok, skipped, warning
from mountpoint.checks.subject import Subject, within
from mountpoint.config import MIB
from mountpoint.errors import MountError
from mountpoint.log.setup import SYSLOG_SOCKET, cannot_write, log_location
from mountpoint.mount import dead_mount, preflight
from mountpoint.s3.crt.native import symbols
from mountpoint.staging import area
from mountpoint.upload import pending_journal

#: Seconds; a directory on a hung file system never answers.
DIRECTORY_S = 5.0
HUNG = "a file system hangs there: find it with findmnt, and unmount it"
#: FUSE_MAX_PAGES, without which `fuse/_channel` has nothing to negotiate.
#: https://git.kernel.org/torvalds/c/5da784cce4308ae10a79e3c8c41b13fb9568e4e0
WIDE_SINCE = (4, 20)
#: With /dev/fd/N, another process has mounted.
MOUNTED = "another process has mounted"


def fuse_device(subject: Subject) -> Result:
    """Check that the kernel supports FUSE and lets this user use it."""
    if subject.config.mount.descriptor is not None:
        return skipped(MOUNTED)
    preflight.check_device()
    return ok("/dev/fuse can be opened")


def fuse_library(_subject: Subject) -> Result:
    """Load libfuse."""
    version = preflight.check_library()
    return ok(f"libfuse {version}", version=version)


def kernel(subject: Subject) -> Result:
    """Check how much the kernel reads at a time."""
    release = os.uname().release
    numbers = re.match(r"(\d+)\.(\d+)", release)
    wide = numbers is not None and (int(numbers[1]), int(numbers[2])) >= WIDE_SINCE
    if wide and subject.config.mount.channel:
        return ok(f"Linux {release}: reads of up to 1 MiB", release=release, read_kib=1024)
    said = f"Linux {release}: reads of up to 128 KiB, so large files are slower"
    hint = "omit --no-channel" if wide else "Linux 4.20 and newer reads 1 MiB at a time"
    return warning(said, hint, release=release, read_kib=128)


def data_plane(subject: Subject) -> Result:
    """Check whether bytes can arrive without the interpreter."""
    if not subject.config.client.native:
        return warning(
            "the interpreter receives the bytes of objects, so large files are slower",
            "omit --no-native",
            native=False,
        )
    try:
        symbols.addresses()
    except symbols.Unavailable as error:
        return warning(
            f"the interpreter receives the bytes of objects, so large files are slower: {error}",
            f"install awscrt {' or '.join(sorted(symbols.VERSIONS))} from PyPI",
            native=False,
        )
    return ok("bytes arrive without the interpreter", native=True)


def permissions(subject: Subject) -> Result:
    """Check whether this user may mount, and how."""
    if subject.config.mount.descriptor is not None:
        return skipped(MOUNTED)
    preflight.check_privileges()
    uid = os.geteuid()
    try:
        name = f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        name = f"uid {uid}"
    how = "fusermount" if preflight.needs_fusermount(subject.config.mount) else "mount(2)"
    return ok(f"{name} mounts by {how}", uid=uid, by=how)


def fusermount(subject: Subject) -> Result:
    """Check that the program exists."""
    mount = subject.config.mount
    if mount.descriptor is not None:
        return skipped(MOUNTED)
    if not preflight.needs_fusermount(mount):
        return skipped("root needs it only for --auto-unmount")
    preflight.check_fusermount(mount)
    return ok("it is installed")


def allow_other(subject: Subject) -> Result:
    """Check whether other users may have access."""
    mount = subject.config.mount
    if mount.descriptor is not None:
        return skipped(MOUNTED)
    if not (mount.allow_other or mount.allow_root):
        return skipped("neither --allow-other nor --allow-root is given")
    preflight.check_allow_other(mount)
    return ok("other users may get access")


def directory(subject: Subject) -> Result:
    """Check that the directory can be mounted on."""
    path = subject.directory
    if path is None:
        return skipped("no directory is given")
    if subject.config.mount.descriptor is not None:
        return ok(f"'{path}' is mounted and not served yet", directory=path)

    def look() -> Result:
        if dead_mount.is_dead(path):
            return warning(
                f"a mount-s3 that was killed has left a dead mount on '{path}'",
                "nothing needs to be done: mounting removes it",
                directory=path,
            )
        preflight.check_directory(path)
        if _is_empty(path):
            return ok(f"'{path}' exists and is empty", directory=path)
        return warning(
            f"'{path}' exists and is not empty",
            "while the bucket is mounted there, its files are hidden",
            directory=path,
        )

    return within(DIRECTORY_S, f"'{path}'", HUNG, look)


def _is_empty(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except OSError:  # a directory that cannot be listed may still be mounted on
        return True


def staging(subject: Subject) -> Result:
    """Check whether files can be staged, and the space for them."""
    change = subject.config.change
    path = change.staging_directory
    if path is None:
        return skipped("--staged-writes is not given")

    def look() -> Result:
        area.check_staging_directory(path, subject.directory)
        try:
            room = area.check_room(path, change.staging_limit_bytes)
        except OSError as error:
            raise MountError(
                f"'{path}' cannot be used: {error.strerror}", "choose another"
            ) from None
        usable_mib = room.usable_bytes // MIB
        return ok(f"'{path}' has room for {usable_mib} MiB", directory=path, room_mib=usable_mib)

    return within(DIRECTORY_S, f"'{path}'", HUNG, look)


def cache(subject: Subject) -> Result:
    """Check whether the data cache can be used, and the space for it."""
    path = subject.config.cache.directory
    if path is None:
        return skipped("--cache is not given")

    def look() -> Result:
        check_writable(path)
        if subject.directory is not None:
            check_directory(path, subject.directory)
        found = os.statvfs(path if os.path.exists(path) else os.path.dirname(path))
        free_mib = found.f_bavail * found.f_frsize // MIB
        return ok(f"'{path}', {free_mib} MiB are free there", directory=path, free_mib=free_mib)

    return within(DIRECTORY_S, f"'{path}'", HUNG, look)


def log(subject: Subject) -> Result:
    """Check that a log can be written."""
    config = subject.config.log
    if config.no_log:
        return skipped("--no-log")
    if config.directory is not None:
        reason = preflight.why_unwritable(config.directory)
        if reason is not None:
            raise cannot_write(config.directory, reason)
        return ok(f"a file in '{config.directory}'", directory=config.directory)
    if config.foreground:
        return ok("standard error")
    if os.path.exists(SYSLOG_SOCKET):
        return ok("syslog")
    return warning("no log will be written", log_location(config))


def uploads_journal(subject: Subject) -> Result:
    """Check that the journal of unfinished uploads can be written."""
    if subject.config.mount.read_only:
        return skipped("--read-only: mount-s3 uploads nothing")
    path = str(pending_journal.default_directory(subject.environ))
    reason = preflight.why_unwritable(path)
    if reason is None:
        return ok(f"'{path}' can be written", directory=path)
    return warning(
        f"'{path}': {reason}: {pending_journal.UNNOTED}",
        "set XDG_STATE_HOME to another directory",
        directory=path,
    )
