"""Types of the extension module; its docstrings are in `_requests.pyx`."""

from collections.abc import Sequence

from mountpoint.native._arrivals import Arrival
from mountpoint.native._lane import LaneSource
from mountpoint.s3.crt.native._connections import Connections

class NativeGet:
    status: int
    thread: int
    begun_at_s: float
    cancelled: bool
    verify: bool
    requested: int
    error: int
    ended: bool
    refused: bool
    unclear: bool
    received: int
    position: int
    described_at_s: float
    ended_at_s: float
    verified: bool
    owner: object
    def cancel(self) -> None: ...
    def headers(self) -> list[tuple[str, str]]: ...
    def description(self) -> list[tuple[str, str]]: ...
    def error_body(self) -> bytes | None: ...
    def body(self) -> memoryview: ...
    def accept(self) -> None: ...
    def release(self) -> None: ...

class NativeGets:
    def __init__(
        self, functions: Sequence[int], client: object, connections: Connections
    ) -> None: ...
    def get(
        self,
        sink: Arrival,
        path: bytes,
        headers: list[tuple[bytes, bytes]],
        signing: object | None,
        *,
        start: int,
        size: int,
        object_size: int,
        etag: bytes,
        whole: bool,
        verify: bool,
        single: bool,
        owner: object,
    ) -> NativeGet: ...
    def source(
        self,
        path: bytes,
        headers: list[tuple[bytes, bytes]],
        signing: object | None,
        *,
        object_size: int,
        etag: bytes,
        verify: bool,
        single: bool,
        matches: bool,
    ) -> LaneSource: ...
    def wait(self, timeout_s: float) -> bool: ...
    def take(self) -> list[NativeGet]: ...
