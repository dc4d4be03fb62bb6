"""Reference model of a bucket that several mounts change, and of what each mount may see.

The model keeps every state of the bucket, with the time on the test's clock at which it began. This
determines the possible answers of a mount about a path: the present state; any state of the last
`ttl_s` seconds, but not from before the mount's own last change of it; and the state that only the
mount has: files that it writes, directories that it made.

The model has no inodes, kernels or requests.
"""

from dataclasses import dataclass, field

Path = bytes

#: The state of a path: a directory (None), a file (its bytes), or nothing (ABSENT).
State = bytes | None | str
ABSENT = "absent"


def parent_of(path: Path) -> Path:
    """Return the directory of a path; b"" for the root."""
    return path.rpartition(b"/")[0]


def ancestors(path: Path) -> list[Path]:
    """Return all directories above a path, without the root."""
    found = []
    while path := parent_of(path):
        found.append(path)
    return found


@dataclass
class Bucket:
    """The objects of an S3 bucket, now and before. `history` has times and states, oldest first."""

    history: list[tuple[float, dict[bytes, bytes]]] = field(
        default_factory=lambda: [(float("-inf"), {})]
    )

    @property
    def now(self) -> dict[bytes, bytes]:
        """The present objects."""
        return self.history[-1][1]

    @property
    def version(self) -> int:
        """The number of the bucket's present state."""
        return len(self.history) - 1

    def put(self, key: bytes, data: bytes, at_s: float) -> None:
        """Put an object."""
        self.history.append((at_s, self.now | {key: data}))

    def delete(self, key: bytes, at_s: float) -> None:
        """Delete an object, if it exists."""
        self.history.append((at_s, {k: v for k, v in self.now.items() if k != key}))

    def states(self, path: Path, since_s: float, version: int = 0) -> list[State]:
        """Return the states of a path since a time and a version; the present one is last."""
        found = []
        for index, (_, objects) in enumerate(self.history):
            ended_s = self.history[index + 1][0] if index < self.version else float("inf")
            if ended_s >= since_s and index >= version:
                found.append(state_of(objects, path))
        return found


def state_of(objects: dict[bytes, bytes], path: Path) -> State:
    """Return the state of a path in a bucket: a directory shadows a file."""
    if not path or any(key.startswith(path + b"/") for key in objects):
        return None
    return objects.get(path, ABSENT)


def children(objects: dict[bytes, bytes], path: Path) -> dict[bytes, bool]:
    """Return the names in a directory of a bucket, and whether each is a directory."""
    prefix = path + b"/" if path else b""
    found: dict[bytes, bool] = {}
    for key in objects:
        if key.startswith(prefix) and key != prefix:
            name, slash, _ = key[len(prefix) :].partition(b"/")
            found[name] = found.get(name, False) or bool(slash)
    return found


@dataclass
class View:
    """The state that one mount has besides the bucket.

    `writing` has the content of files that are not closed, `directories` those that were made or
    emptied here. `known_from` has the version of the bucket since which the mount knows a path
    because it changed it; `made` has the mount's last change of it, and its time.
    """

    bucket: Bucket
    writing: dict[Path, bytes] = field(default_factory=dict)
    directories: set[Path] = field(default_factory=set)
    known_from: dict[Path, int] = field(default_factory=dict)
    made: dict[Path, tuple[State, float]] = field(default_factory=dict)

    def keep(self, path: Path) -> None:
        """Record that a directory exists here, with all directories above it."""
        if path:
            self.directories |= {path, *ancestors(path)}

    def drop(self, path: Path) -> None:
        """Record that a directory was removed here, with everything below it."""
        self.directories = {
            each for each in self.directories if each != path and not each.startswith(path + b"/")
        }

    def changed(self, path: Path, state: State, at_s: float) -> None:
        """Record a change of a path by this mount."""
        self.known_from[path] = self.bucket.version
        self.made[path] = (state, at_s)

    def is_directory(self, path: Path) -> bool:
        """Whether a directory exists here, independent of the bucket."""
        return not path or path in self.directories

    def may_be(self, path: Path, since_s: float) -> list[State]:
        """Return the possible states of a path for this mount, if it uses no older answers."""
        if path in self.writing:
            return [self.writing[path]]
        if self.is_directory(path):
            return [None]
        found = self.bucket.states(path, since_s, self.known_from.get(path, 0))
        state, at_s = self.made.get(path, (ABSENT, float("-inf")))
        if at_s >= since_s and state != ABSENT:
            found.append(state)
        if any(each.startswith(path + b"/") for each in self.writing):
            found.append(None)  # a file that is being written below it
        return found

    def may_be_absent(self, path: Path, since_s: float) -> bool:
        """Whether the mount may report a path as missing, from an answer of this age."""
        if path in self.writing or self.is_directory(path):
            return False
        if any(each.startswith(path + b"/") for each in self.writing):
            return False
        return ABSENT in self.bucket.states(path, since_s, self.known_from.get(path, 0))

    def names(self, path: Path) -> dict[bytes, bool]:
        """Return the names in a new listing, and whether each is a directory."""
        found = children(self.bucket.now, path)
        for each in self.directories:
            if parent_of(each) == path:
                found[each.rpartition(b"/")[2]] = True
        for each in self.writing:
            if parent_of(each) == path:
                found.setdefault(each.rpartition(b"/")[2], False)
            elif not path or each.startswith(path + b"/"):
                found[each[len(path) :].lstrip(b"/").partition(b"/")[0]] = True
        return found
