"""Fill the demo's bucket, and compare the files of the mount with the originals.

The input is real: the standard library of this machine's Python, some thousand files of all sizes
in nested folders, and one large object of pseudo-random bytes. The large object is generated part
by part during the upload, so it never exists as a file.

All access to the mount happens in threads. The demo waits for them with a deadline and never joins
them, because a thread that reads from a hanging mount ends only with the mount.
"""

from __future__ import annotations

import hashlib
import os
import random
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any, TypeVar

from tools.progress import Advance

TREE_PREFIX = "python/"
LARGE_KEY = "large/1GiB.bin"
LARGE_SIZE_BYTES = 1 << 30
LARGE_PART_BYTES = 16 << 20

THREADS = 8
READ_BYTES = 1 << 20
# Not part of the standard library: installed packages and compiled files.
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages"})

Item = TypeVar("Item")
Result = TypeVar("Result")


class OverdueError(RuntimeError):
    """Work on the mount has not ended before its deadline."""


def standard_library() -> dict[str, Path]:
    """Return the files of the standard library by name below TREE_PREFIX."""
    root = Path(sysconfig.get_path("stdlib"))
    files: dict[str, Path] = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for name in names:
            path = Path(folder, name)
            # Links may be broken, and a name that is not UTF-8 cannot be a key.
            if path.is_file() and str(path).isprintable():
                files[path.relative_to(root).as_posix()] = path
    return files


# -- filling -------------------------------------------------------------------------------------


def upload_tree(client: Any, bucket: str, files: dict[str, Path], advance: Advance) -> None:
    """Upload the files below TREE_PREFIX, several in parallel."""

    def upload(item: tuple[str, Path]) -> None:
        name, path = item
        with path.open("rb") as body:
            client.put_object(Bucket=bucket, Key=TREE_PREFIX + name, Body=body)

    for _ in in_parallel(upload, files.items()):
        advance(1)


def upload_large(client: Any, bucket: str, advance: Advance) -> str:
    """Upload the large object in parts; returns the SHA-256 of its bytes."""
    target = {"Bucket": bucket, "Key": LARGE_KEY}
    upload_id = client.create_multipart_upload(**target)["UploadId"]
    sha256 = hashlib.sha256()

    def upload(number: int, body: bytes) -> dict[str, Any]:
        answer = client.upload_part(**target, UploadId=upload_id, PartNumber=number, Body=body)
        advance(len(body))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    pool = ThreadPoolExecutor(THREADS)
    parts: list[Future[dict[str, Any]]] = []
    try:
        for number in range(1, LARGE_SIZE_BYTES // LARGE_PART_BYTES + 1):
            body = random.Random(number).randbytes(LARGE_PART_BYTES)
            sha256.update(body)
            # Generating is faster than uploading: wait, or the whole object would be in memory.
            _wait_while_busy(parts, THREADS)
            parts.append(pool.submit(upload, number, body))
        done = [part.result() for part in parts]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    client.complete_multipart_upload(**target, UploadId=upload_id, MultipartUpload={"Parts": done})
    return sha256.hexdigest()


def _wait_while_busy(futures: list[Future[Any]], limit: int) -> None:
    running = [future for future in futures if not future.done()]
    if len(running) >= limit:
        wait(running, return_when=FIRST_COMPLETED)


# -- comparing -----------------------------------------------------------------------------------


def list_tree(root: Path) -> set[str]:
    """Return the names of all files below a folder, relative to it."""

    def fail(error: OSError) -> None:
        raise error  # by default os.walk skips folders that it cannot list

    return {
        Path(folder, name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root, onerror=fail)
        for name in names
    }


def compare_names(expected: Iterable[str], seen: set[str]) -> list[str]:
    """Return a line for each name that only one side has."""
    wanted = set(expected)
    return [
        *(f"{name}: in the bucket, not in the mount" for name in sorted(wanted - seen)),
        *(f"{name}: in the mount, not in the bucket" for name in sorted(seen - wanted)),
    ]


def compare_contents(
    files: dict[str, Path], root: Path, advance: Advance, timeout_s: float
) -> list[str]:
    """Compare the SHA-256 of each file below `root` with the original's. Return a line for each
    that differs or cannot be read. Raises OverdueError."""

    def compare(item: tuple[str, Path]) -> str | None:
        name, original = item
        try:
            seen = sha256_of(root / name)
        except OSError as error:
            return f"{name}: cannot be read: {error.strerror}"
        return None if seen == sha256_of(original) else f"{name}: the contents differ"

    problems = []
    for problem in in_parallel(compare, files.items(), timeout_s):
        advance(1)
        if problem is not None:
            problems.append(problem)
    return sorted(problems)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_through(path: Path) -> int:
    """Read a file from start to end, discard the bytes, and return their number."""
    buffer = bytearray(READ_BYTES)
    size = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            size += count
    return size


# -- threads -------------------------------------------------------------------------------------


def in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], timeout_s: float | None = None
) -> Iterator[Result]:
    """Yield the results of `function` for all items as they arrive. Raises OverdueError."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        futures = [pool.submit(function, item) for item in items]
        for future in as_completed(futures, timeout=timeout_s):
            yield future.result()
    except TimeoutError as error:
        raise OverdueError(f"the mount hangs: not done after {timeout_s:.0f} s") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_time(function: Callable[[Item], Result], item: Item, timeout_s: float) -> Result:
    """Return `function(item)`. Raises OverdueError."""
    return next(iter(in_parallel(function, [item], timeout_s)))
