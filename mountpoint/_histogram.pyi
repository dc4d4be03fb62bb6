"""Types of the extension module; its docstrings are in `_histogram.pyx`."""

from typing import Final

SCALE: Final[int]

class Histogram:
    count: int
    zeros: int
    total: int
    least: int
    most: int
    def add(self, value: int) -> None: ...
    def buckets(self) -> list[int]: ...

class Timer:
    histogram: Histogram
    failures: int
    def begin(self) -> int: ...
    def end(self, begun_ns: int, failed: bool = False) -> None: ...
    def drop(self) -> None: ...
    @property
    def under_way(self) -> int: ...
