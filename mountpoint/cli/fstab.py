r"""The options of an /etc/fstab line: `-o` items as long options. Pure.

mount(8) gives `bucket /mnt fuse.mount-s3 OPTIONS` to mount.fuse, and that runs
`mount-s3 bucket /mnt -o OPTIONS` with options of its own added. An item is a long option
without its dashes, or one that mount(8) has for every file system: without a meaning here, for
the kernel, or refused by name. The rules for escapes and for `ro` are the reference's
(fstab.rs, doc/CONFIGURATION.md).
"""

import difflib
import re
from collections.abc import Collection, Iterator, Sequence

from mountpoint.errors import MountError

#: Options of mount(8) that are not for the file system.
FOR_MOUNT = frozenset(
    {"auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail"}
    | {"defaults", "comment", "uhelper", "helper", "silent", "loud"}
)
#: Those that change nothing: every mount of ours is nosuid, nodev and noatime, checks permissions,
#: and may hide files. S3 has no device files, no access times and no symbolic links.
WITHOUT_EFFECT = frozenset(
    {"rw", "async", "suid", "nosuid", "dev", "nodev", "symfollow", "nosymfollow"}
    | {"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime"}
    | {"strictatime", "nostrictatime", "lazytime", "nolazytime", "noiversion", "nomand"}
    | {"default_permissions", "nonempty"}
)
#: For the kernel. Without either of these files can be executed; "user" has mount(8) add noexec.
EXEC, NO_EXEC = "exec", "noexec"
#: SELinux: what the kernel takes all files for.
CONTEXTS = frozenset({"context", "fscontext", "defcontext", "rootcontext"})
KERNEL = CONTEXTS | {EXEC, NO_EXEC}

_PROPAGATION = "mount it without, then: mount --make-{} DIRECTORY"
_NO_DEVICE = "a bucket is no block device"
#: Options that would mean something, and what to do instead: long options that make no sense in
#: /etc/fstab, those of mount(8) that cannot be had, and what other FUSE file systems call ours.
REFUSED = {
    "check": "it is for the command line: nothing would be mounted",
    "json": "it is for --check, on the command line",
    "foreground": "a mount from /etc/fstab runs in the background",
    "read-only": "use 'ro'",
    "help": "use mount-s3 --help",
    "version": "use mount-s3 --version",
    "sync": "leave it out: a file is in S3 when it is closed, or after fsync(2)",
    "dirsync": "leave it out: a file is in S3 when it is closed, or after fsync(2)",
    "remount": "unmount it, and mount it with the options that it is to have",
    "bind": "with a network interface it is --bind; for another directory: mount --bind",
    "rbind": "mount the bucket, then: mount --rbind DIRECTORY OTHER",
    "move": "use mount --move OLD NEW",
    "mand": "leave it out: Linux has no mandatory locks any more",
    "iversion": "leave it out: S3 has no version counters",
    "loop": _NO_DEVICE,
    "offset": _NO_DEVICE,
    "sizelimit": _NO_DEVICE,
    "umask": "use dir-mode=MODE and file-mode=MODE",
    "dmask": "use dir-mode=MODE",
    "fmask": "use file-mode=MODE",
} | {
    prefix + kind: _PROPAGATION.format(prefix + kind)
    for prefix in ("", "r")
    for kind in ("shared", "slave", "private", "unbindable")
}
_CONTEXT = re.compile(r"(?:fs|def|root)?context=")


def long_options(
    texts: Sequence[str], known: Collection[str], suggested: Collection[str]
) -> list[str]:
    """Return the items of all `-o` arguments as `--NAME` or `--NAME=VALUE`.

    `known` are the names of the long options, `suggested` those that may be meant by a name that
    is not known. Raises MountError that names the bad item.
    """
    items = list(_items(texts))
    if "ro" in items and "rw" in items:
        raise MountError("-o ro and -o rw exclude each other", "leave one of them out")
    return [
        "--read-only" if item == "ro" else _long_option(item, known, suggested)
        for item in items
        if not _is_for_others(item)
    ]


def kernel_options(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the items that the kernel is given, each once; the last one of a name counts."""
    found: dict[str, str] = {}
    for item in _items(texts):
        name, _, value = item.partition("=")
        if name in (EXEC, NO_EXEC):
            found[NO_EXEC] = item
        elif name in CONTEXTS:
            # The kernel takes what is in quotes as it is: there are commas in a context.
            bare = value.strip('"')
            found[name] = f'{name}="{bare}"'
    return tuple(item for item in found.values() if item != EXEC)


def split_items(text: str) -> list[str]:
    r"""Split the argument of one `-o` at its commas.

    `\,`, `\\` and `\"` stand for the character itself. Any other backslash is an error, and so
    is a bare double quote, to leave room for quoting; but for SELinux contexts, which mount(8)
    quotes.
    """
    items = [""]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            escaped = next(characters, None)
            if escaped is None or escaped not in ',\\"':
                place = "at the end" if escaped is None else f"before '{escaped}'"
                raise MountError(
                    f"-o {text}: a backslash {place}",
                    "a backslash stands before a comma, a backslash or a double quote",
                )
            items[-1] += escaped
        elif character == '"' and _CONTEXT.fullmatch(items[-1]):
            items[-1] += "".join(iter(lambda: next(characters, '"'), '"'))
        elif character == '"':
            raise MountError(
                f"-o {text}: a double quote without a backslash", 'write \\" for a double quote'
            )
        elif character == ",":
            items.append("")
        else:
            items[-1] += character
    return items


def _items(texts: Sequence[str]) -> Iterator[str]:
    return (item for text in texts for item in split_items(text) if item)


def _is_for_others(item: str) -> bool:
    """Whether an item is for mount(8), for the kernel or for nobody."""
    name = item.partition("=")[0]
    return name in FOR_MOUNT | WITHOUT_EFFECT | KERNEL or name.startswith(("x-", "X-"))


def _long_option(item: str, known: Collection[str], suggested: Collection[str]) -> str:
    if item.startswith("-"):
        raise MountError(f"-o {item}: options have no dashes here", f"use -o {item.lstrip('-')}")
    name, equals, value = item.partition("=")
    name = name.replace("_", "-")  # FUSE users write allow_other
    if name in REFUSED and not (name == "bind" and equals):  # then it is ours
        raise MountError(f"-o {item}: '{name}' is not for -o", REFUSED[name])
    if name not in known:
        near = difflib.get_close_matches(name, suggested, 1)
        hint = f"did you mean '{near[0]}'?" if near else "mount-s3 --help lists the options"
        raise MountError(f"-o {item}: unknown option '{name}'", hint)
    return f"--{name}{equals}{value}"
