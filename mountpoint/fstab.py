r"""The options of an /etc/fstab line: `-o` items as long options. Pure.

mount(8) gives `bucket /mnt fuse.mount-s3 OPTIONS` to mount.fuse, and that runs
`mount-s3 bucket /mnt -o OPTIONS` with options of its own added. An item is a long option
without its dashes, or one of mount's that says nothing about us. The rules for escapes, for
`ro` and for what is ignored are the reference's (fstab.rs, doc/CONFIGURATION.md), and more
is ignored, because it stands in many an fstab or means what is so anyway.
"""

import difflib
from collections.abc import Collection, Sequence

from mountpoint.errors import MountError

#: The first ten are the reference's. "dev" and "suid" are added by mount.fuse, and the mount
#: is nodev and nosuid all the same; "exec" is how it is ("noexec" is not, and is refused).
IGNORED = frozenset(
    {"auto", "noauto", "user", "nouser", "users", "_netdev", "nofail", "rw", "nodev", "nosuid"}
    | {"defaults", "dev", "suid", "exec"}
)
#: Long options that make no sense in /etc/fstab, and what to do instead.
REFUSED = {
    "check": "it is for the command line: nothing would be mounted",
    "json": "it is for --check, on the command line",
    "foreground": "a mount from /etc/fstab runs in the background",
    "read-only": "use 'ro'",
    "help": "use mount-s3 --help",
    "version": "use mount-s3 --version",
}


def long_options(texts: Sequence[str], known: Collection[str]) -> list[str]:
    """Return the items of all `-o` arguments as `--NAME` or `--NAME=VALUE`.

    `known` are the names of the long options. Raises MountError that names the bad item.
    """
    items = [item for text in texts for item in split_items(text) if item]
    if "ro" in items and "rw" in items:
        raise MountError("-o ro and -o rw exclude each other", "leave one of them out")
    return [
        "--read-only" if item == "ro" else _long_option(item, known)
        for item in items
        if item not in IGNORED and not item.startswith("x-")
    ]


def split_items(text: str) -> list[str]:
    r"""Split the argument of one `-o` at its commas.

    `\,`, `\\` and `\"` stand for the character itself. Any other backslash is an error, and so
    is a bare double quote, to leave room for quoting.
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
        elif character == '"':
            raise MountError(
                f"-o {text}: a double quote without a backslash", 'write \\" for a double quote'
            )
        elif character == ",":
            items.append("")
        else:
            items[-1] += character
    return items


def _long_option(item: str, known: Collection[str]) -> str:
    if item.startswith("-"):
        raise MountError(f"-o {item}: options have no dashes here", f"use -o {item.lstrip('-')}")
    name, equals, value = item.partition("=")
    name = name.replace("_", "-")  # FUSE users write allow_other
    if name in REFUSED:
        raise MountError(f"-o {item}: '{name}' is not for -o", REFUSED[name])
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else "mount-s3 --help lists the options"
        raise MountError(f"-o {item}: unknown option '{name}'", hint)
    return f"--{name}{equals}{value}"
