"""Preflight checks: what a mount needs of this machine and the bucket, before it is mounted.

`run` and `checks` call the same functions, so both report the same. The functions raise MountError
and send no request to S3.
"""

import os
import shutil
import stat
from pathlib import Path

from mountpoint.config import Config, MountConfig
from mountpoint.errors import MountError
from mountpoint.system import kernel
from mountpoint.system.mounts import failure

#: The capability's bit in /proc/self/status: capabilities(7).
CAP_SYS_ADMIN = 1 << 21

#: How long a mount on the directory may take to answer, in seconds.
ANSWER_S = 5.0


def check_directory(directory: str) -> None:
    """Raise MountError unless `directory` can become a mount point."""
    if directory in kernel.mount_points():
        error = failure(directory, ANSWER_S)
        dead = "" if error is None else f" that no longer answers ({error.strerror})"
        raise MountError(
            f"'{directory}' is already a mount point{dead}",
            f"unmount it first (umount {directory}), or choose another directory",
        )
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        raise MountError(
            f"the directory '{directory}' does not exist", f"make it first: mkdir -p {directory}"
        ) from None
    except OSError as error:
        raise MountError(
            f"'{directory}' cannot be used: {error.strerror}",
            "choose a directory that you can access",
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"'{directory}' is not a directory", "choose an existing directory")
    # fusermount has the same rule for all users that cannot mount by themselves.
    if not _may_mount() and not os.access(directory, os.W_OK):
        own = status.st_uid == os.getuid()
        raise MountError(
            f"'{directory}' cannot be written: only root may mount there",
            f"allow it: chmod u+w {directory}" if own else "choose a directory of your own",
        )


def check_fuse(config: MountConfig) -> None:
    """Raise MountError unless FUSE can be used with these options."""
    check_device()
    check_privileges()
    check_fusermount(config)
    check_contexts(config)
    check_allow_other(config)


def check_device() -> None:
    """Raise MountError unless /dev/fuse can be opened."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except FileNotFoundError:
        raise MountError(
            "there is no /dev/fuse",
            "load the kernel module (modprobe fuse); in a container add --device /dev/fuse "
            "--cap-add SYS_ADMIN",
        ) from None
    except OSError as error:
        raise MountError(
            f"/dev/fuse cannot be opened: {error.strerror}",
            "run as root, or get access to the device; in a container add --device /dev/fuse "
            "--cap-add SYS_ADMIN",
        ) from None


def check_privileges() -> None:
    """Raise MountError if neither this process nor fusermount, which is setuid, may mount.

    mount(2) needs CAP_SYS_ADMIN. A setuid program does not get a capability that the bounding set
    lacks, as in most containers, nor any under no_new_privs (capabilities(7), prctl(2)).
    """
    if _may_mount():
        return
    if _status("NoNewPrivs", 0) == 1:
        raise MountError(
            "this process may not mount, and cannot get the right to (no_new_privs)",
            "in a service omit NoNewPrivileges=; in a container allow privilege escalation",
        )
    if not CAP_SYS_ADMIN & _status("CapBnd"):
        raise MountError(
            "this process may not mount: it has no CAP_SYS_ADMIN, and cannot get it",
            "in a container add --cap-add SYS_ADMIN",
        )


def check_fusermount(config: MountConfig) -> None:
    """Raise MountError if fusermount is needed and missing."""
    if needs_fusermount(config) and shutil.which("fusermount") is None:
        raise MountError(
            "fusermount is missing: only root can mount without it, and --auto-unmount needs it",
            "install it: apt install fuse, or dnf install fuse",
        )


def check_contexts(config: MountConfig) -> None:
    """Raise MountError if there are SELinux contexts and fusermount would mount."""
    contexts = [each for each in config.kernel_options if "context=" in each]
    if contexts and needs_fusermount(config):
        raise MountError(
            f"-o {contexts[0]} is not possible: fusermount does not accept SELinux contexts",
            "mount as root without --auto-unmount, or omit the option",
        )


def needs_fusermount(config: MountConfig) -> bool:
    """Whether fusermount mounts in place of this process."""
    return os.geteuid() != 0 or config.auto_unmount


def check_allow_other(config: MountConfig) -> None:
    """Raise MountError if the user may not let other users in, but an option asks for that."""
    if (config.allow_other or config.allow_root) and not _users_may_allow_other():
        raise MountError(
            "--allow-other and --allow-root are for root, unless /etc/fuse.conf allows them",
            "add the line 'user_allow_other' to /etc/fuse.conf, or omit the option",
        )


def check_library() -> str:
    """Load the FUSE library, and return its version. Raises MountError."""
    try:
        from mountpoint.fuse import binding
    except ImportError as error:
        raise missing_library(error) from error
    return binding.library_version()


def missing_library(error: ImportError) -> MountError:
    """Return the error for a library that cannot be loaded."""
    return MountError(
        f"cannot load a library: {error}",
        "libfuse 2.9: apt install libfuse2, or dnf install fuse-libs; mount-s3 brings the others",
    )


def check_kind(config: Config, *, is_directory: bool) -> None:
    """Raise MountError if the options need a directory bucket, and `is_directory` is False."""
    if config.change.incremental_upload and not is_directory:
        raise MountError(
            f"'{config.bucket.name}' is not a directory bucket: it supports no appends",
            "omit --incremental-upload; --allow-append works with any bucket, by copying",
        )


def why_unwritable(directory: str) -> str | None:
    """Return why no file can be created in `directory`, or None if one can.

    A missing directory counts as created first. This creates nothing.
    """
    wanted = path = Path(directory).absolute()
    try:
        while not os.path.lexists(path):
            path = path.parent
        if not stat.S_ISDIR(path.stat().st_mode):
            return "File exists" if path == wanted else "Not a directory"
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return "Read-only file system"
    except OSError as error:
        return error.strerror
    return None if os.access(path, os.W_OK | os.X_OK) else "Permission denied"


def _may_mount() -> bool:
    """Whether this process may call mount(2)."""
    return bool(CAP_SYS_ADMIN & _status("CapEff"))


def _users_may_allow_other() -> bool:
    if os.geteuid() == 0:
        return True
    try:
        with open("/etc/fuse.conf", encoding="utf-8", errors="replace") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


def _status(name: str, unknown: int = CAP_SYS_ADMIN) -> int:
    """Return a hexadecimal field of /proc/self/status; `unknown` if it is missing."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1], 16)
    return unknown
