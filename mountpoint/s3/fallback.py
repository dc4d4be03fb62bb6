"""Send a request without the optional headers that the store does not support.

A condition and a checksum make a write safer, but not all stores accept them. So a request gets
those that the store may support (`capabilities`). If it refuses one, the request is sent again
without it, at once: that is no retry.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from mountpoint.errors import S3Error
from mountpoint.s3.capabilities import Capabilities, Operation
from mountpoint.s3.client import ALWAYS, Condition

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Terms:
    """The optional headers of a request: its condition, and whether it has checksums."""

    condition: Condition = ALWAYS
    checksums: bool = False


class Fallback(Generic[T]):
    """One request; `send` sends it with the optional headers that it is given.

    `terms` are the optional headers that the request should have.
    """

    def __init__(
        self,
        capabilities: Capabilities,
        operation: Operation,
        terms: Terms,
        send: Callable[[Terms], "Future[T]"],
    ) -> None:
        self._capabilities = capabilities
        self._operation = operation
        self._terms = terms
        self._send = send
        self._sent = terms

    def start(self) -> "Future[T]":
        """Send the request with the optional headers that the store may support."""
        conditional = self._operation not in self._capabilities.unconditional
        self._sent = Terms(
            self._terms.condition if conditional else ALWAYS,
            self._terms.checksums and self._capabilities.checksums,
        )
        return self._send(self._sent)

    def applies(self, error: S3Error) -> bool:
        """Note what the store has refused with `error`; True: `start` now sends less."""
        return self._capabilities.refused(
            error,
            self._operation,
            condition=self._sent.condition != ALWAYS,
            checksums=self._sent.checksums,
        )
