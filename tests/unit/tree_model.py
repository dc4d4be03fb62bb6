"""Reference model of a bucket as a tree: nested dictionaries, one key after another."""

from collections.abc import Iterable, Iterator
from typing import TypeAlias, Union

#: A directory maps names to directories and files; a file is its key.
Tree: TypeAlias = dict[bytes, Union["Tree", bytes]]


def tree_of(keys: Iterable[bytes]) -> Tree:
    """Return the tree of a bucket with these keys."""
    root: Tree = {}
    for key in keys:
        _put(root, key)
    return root


def directories(tree: Tree, prefix: bytes = b"") -> Iterator[tuple[bytes, Tree]]:
    """Yield every directory of the tree with its prefix, the root first."""
    yield prefix, tree
    for name, child in tree.items():
        if isinstance(child, dict):
            yield from directories(child, prefix + name + b"/")


def linux_can_name(name: bytes) -> bool:
    """Whether Linux allows a file of this name, by a second implementation."""
    return 1 <= len(name) <= 255 and name not in (b".", b"..") and not set(name) & {0, ord("/")}


def _put(directory: Tree, key: bytes) -> None:
    *above, last = key.split(b"/")
    for name in above:
        if not linux_can_name(name):
            return
        child = directory.get(name)
        if not isinstance(child, dict):  # nothing yet, or a shadowed file
            child = directory[name] = {}
        directory = child
    if linux_can_name(last):
        directory.setdefault(last, key)
