"""Reference model of a bucket that several mounts change, and of what each of them may see.

The model keeps every state that the bucket has had, with the times (on the test's clock) at which
each began. From that follows what a mount may say of a path: what it is now, what it was at some
time of the last `ttl_s` seconds but not before the mount's own last change of it, and what is in
the mount only: files that it writes, directories that it made.

It knows nothing of inodes, kernels and requests.
"""

from dataclasses import dataclass, field

Path = bytes

#: What a path is: a directory (None), a file (its bytes), or nothing (ABSENT).
State = bytes | None | str
ABSENT = "absent"


def parent_of(path: Path) -> Path:
    """Return the directory that a path is in; b"" for the root."""
    return path.rpartition(b"/")[0]


def ancestors(path: Path) -> list[Path]:
    """Return all directories above a path, without the root."""
    found = []
    while path := parent_of(path):
        found.append(path)
    return found


@dataclass
class Bucket:
    """An S3 bucket's objects, now and before. `history` has times and states, oldest first."""

    history: list[tuple[float, dict[bytes, bytes]]] = field(
        default_factory=lambda: [(float("-inf"), {})]
    )

    @property
    def now(self) -> dict[bytes, bytes]:
        """The objects that are there."""
        return self.history[-1][1]

    @property
    def version(self) -> int:
        """Which state of the bucket it is."""
        return len(self.history) - 1

    def put(self, key: bytes, data: bytes, at_s: float) -> None:
        """Make an object."""
        self.history.append((at_s, self.now | {key: data}))

    def delete(self, key: bytes, at_s: float) -> None:
        """Delete an object, if it is there."""
        self.history.append((at_s, {k: v for k, v in self.now.items() if k != key}))

    def states(self, path: Path, since_s: float, version: int = 0) -> list[State]:
        """Return what a path has been from a time on, from a version on; what it is now last."""
        found = []
        for index, (_, objects) in enumerate(self.history):
            ended_s = self.history[index + 1][0] if index < self.version else float("inf")
            if ended_s >= since_s and index >= version:
                found.append(state_of(objects, path))
        return found


def state_of(objects: dict[bytes, bytes], path: Path) -> State:
    """Return what a path is in a bucket: a directory shadows a file."""
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
    """What one mount has of its own, beside the bucket.

    `writing` is what has been written of files that are not closed, `directories` what was made
    or emptied here. `known_from` says since which version of the bucket the mount has known a
    path, because it changed it itself; `made` what it made of it last, and when.
    """

    bucket: Bucket
    writing: dict[Path, bytes] = field(default_factory=dict)
    directories: set[Path] = field(default_factory=set)
    known_from: dict[Path, int] = field(default_factory=dict)
    made: dict[Path, tuple[State, float]] = field(default_factory=dict)

    def keep(self, path: Path) -> None:
        """Note that a directory exists here, with all above it."""
        if path:
            self.directories |= {path, *ancestors(path)}

    def drop(self, path: Path) -> None:
        """Note that a directory has been removed here, with all below it."""
        self.directories = {
            each for each in self.directories if each != path and not each.startswith(path + b"/")
        }

    def changed(self, path: Path, state: State, at_s: float) -> None:
        """Note a change of a path that this mount has made."""
        self.known_from[path] = self.bucket.version
        self.made[path] = (state, at_s)

    def is_directory(self, path: Path) -> bool:
        """Whether a directory is here, whatever is in the bucket."""
        return not path or path in self.directories

    def may_be(self, path: Path, since_s: float) -> list[State]:
        """Return what this mount may take a path for, if it believes nothing older than that."""
        if path in self.writing:
            return [self.writing[path]]
        if self.is_directory(path):
            return [None]
        found = self.bucket.states(path, since_s, self.known_from.get(path, 0))
        state, at_s = self.made.get(path, (ABSENT, float("-inf")))
        if at_s >= since_s and state != ABSENT:
            found.append(state)
        if any(each.startswith(path + b"/") for each in self.writing):
            found.append(None)  # what is being written somewhere below it
        return found

    def may_be_absent(self, path: Path, since_s: float) -> bool:
        """Whether the mount may say that a path does not exist, by an answer so old at most."""
        if path in self.writing or self.is_directory(path):
            return False
        return ABSENT in self.bucket.states(path, since_s, self.known_from.get(path, 0))

    def names(self, path: Path) -> dict[bytes, bool]:
        """Return what a listing shows that is made now: names, and whether each is a directory."""
        found = children(self.bucket.now, path)
        for each in self.directories:
            if parent_of(each) == path:
                found[each.rpartition(b"/")[2]] = True
        for each in self.writing:
            if parent_of(each) == path:
                found.setdefault(each.rpartition(b"/")[2], False)
        return found
