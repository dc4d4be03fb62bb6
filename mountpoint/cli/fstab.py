r"""Options of an /etc/fstab line: turn `-o` items into long options. Pure.

mount(8) passes `bucket /mnt fuse.mount-s3 OPTIONS` to mount.fuse, which runs
`mount-s3 bucket /mnt -o OPTIONS` and adds options of its own. An item is a long option without its
dashes, or a general option of mount(8). The latter has no effect here, goes to the kernel, or is
refused by name. The rules for escapes and for `ro` are those of AWS's mount-s3 (fstab.rs,
doc/CONFIGURATION.md).
"""

import difflib
import re
from collections.abc import Collection, Iterator, Sequence

from mountpoint.errors import MountError

#: Options that mount(8) handles itself.
FOR_MOUNT = frozenset(
    {"auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail"}
    | {"defaults", "comment", "uhelper", "helper", "silent", "loud"}
)
#: Options without effect: every mount here is nosuid, nodev and noatime, checks permissions, and
#: may hide files. S3 has no device files, no access times and no symbolic links.
WITHOUT_EFFECT = frozenset(
    {"rw", "async", "suid", "nosuid", "dev", "nodev", "symfollow", "nosymfollow"}
    | {"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime"}
    | {"strictatime", "nostrictatime", "lazytime", "nolazytime", "noiversion", "nomand"}
    | {"default_permissions", "nonempty"}
)
#: Passed to the kernel. Files are executable without either; "user" makes mount(8) add noexec.
EXEC, NO_EXEC = "exec", "noexec"
#: SELinux: the context that the kernel assigns to all files.
CONTEXTS = frozenset({"context", "fscontext", "defcontext", "rootcontext"})
KERNEL = CONTEXTS | {EXEC, NO_EXEC}

_PROPAGATION = "omit it, and after mounting run: mount --make-{} DIRECTORY"
_NO_DEVICE = "a bucket is not a block device"
#: Options that would have a meaning, and a hint for each: long options that make no sense in
#: /etc/fstab, options of mount(8) that are not supported, and names from other FUSE file systems.
REFUSED = {
    "check": "it works only on the command line, and mounts nothing",
    "json": "it works only with --check on the command line",
    "foreground": "a mount from /etc/fstab runs in the background",
    "read-only": "use 'ro'",
    "help": "use mount-s3 --help",
    "version": "use mount-s3 --version",
    "sync": "omit it: a file is in S3 when it is closed, or after fsync(2)",
    "dirsync": "omit it: a file is in S3 when it is closed, or after fsync(2)",
    "remount": "unmount it, then mount it with the new options",
    "bind": "for a network interface use --bind; for another directory: mount --bind",
    "rbind": "mount the bucket, then: mount --rbind DIRECTORY OTHER",
    "move": "use mount --move OLD NEW",
    "mand": "omit it: Linux has no mandatory locks any more",
    "iversion": "omit it: S3 has no version counters",
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

    `known` are the names of the long options, `suggested` those to suggest for an unknown name.
    Raises MountError that names the invalid item.
    """
    items = list(_items(texts))
    if "ro" in items and "rw" in items:
        raise MountError("-o ro and -o rw exclude each other", "omit one of them")
    return [
        "--read-only" if item == "ro" else _long_option(item, known, suggested)
        for item in items
        if not _is_for_others(item)
    ]


def kernel_options(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the items for the kernel, each once; the last one of a name counts."""
    found: dict[str, str] = {}
    for item in _items(texts):
        name, _, value = item.partition("=")
        if name in (EXEC, NO_EXEC):
            found[NO_EXEC] = item
        elif name in CONTEXTS:
            # The kernel takes quoted text literally, because contexts contain commas.
            bare = value.strip('"')
            found[name] = f'{name}="{bare}"'
    return tuple(item for item in found.values() if item != EXEC)


def split_items(text: str) -> list[str]:
    r"""Split the argument of one `-o` at its commas.

    `\,`, `\\` and `\"` stand for the character itself. Any other backslash is an error. So is a
    bare double quote, to leave room for quoting, except in SELinux contexts, which mount(8) quotes.
    """
    items = [""]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            escaped = next(characters, None)
            if escaped is None or escaped not in ',\\"':
                position = "at the end" if escaped is None else f"before '{escaped}'"
                raise MountError(
                    f"-o {text}: a backslash {position}",
                    "write a backslash only before a comma, a backslash or a double quote",
                )
            items[-1] += escaped
        elif character == '"' and _CONTEXT.fullmatch(items[-1]):
            items[-1] += "".join(iter(lambda: next(characters, '"'), '"'))
        elif character == '"':
            raise MountError(
                f"-o {text}: a double quote has no backslash before it",
                'write \\" for a double quote',
            )
        elif character == ",":
            items.append("")
        else:
            items[-1] += character
    return items


def _items(texts: Sequence[str]) -> Iterator[str]:
    return (item for text in texts for item in split_items(text) if item)


def _is_for_others(item: str) -> bool:
    """Whether an item is for mount(8), for the kernel, or without effect."""
    name = item.partition("=")[0]
    return name in FOR_MOUNT | WITHOUT_EFFECT | KERNEL or name.startswith(("x-", "X-"))


def _long_option(item: str, known: Collection[str], suggested: Collection[str]) -> str:
    if item.startswith("-"):
        raise MountError(f"-o {item}: write options without dashes", f"use -o {item.lstrip('-')}")
    name, equals, value = item.partition("=")
    name = name.replace("_", "-")  # users of FUSE write allow_other
    if name in REFUSED and not (name == "bind" and equals):  # with a value, `bind` is our option
        raise MountError(f"-o {item}: '{name}' does not work with -o", REFUSED[name])
    if name not in known:
        near = difflib.get_close_matches(name, suggested, 1)
        hint = f"did you mean '{near[0]}'?" if near else "mount-s3 --help lists the options"
        raise MountError(f"-o {item}: unknown option '{name}'", hint)
    return f"--{name}{equals}{value}"
