"""The bodies of an upload that a data cache may keep, until the object is complete.

A block is named after the object's version, which nobody knows before its end. So a cache keeps all
bodies of a multipart upload in memory until then, in room that it would use for blocks that wait to
be written. If that has no room, or some bytes are not in memory, all are given up at once.

The upload's lock guards everything here.
"""

from typing import Protocol

from mountpoint.s3.client import Body, Piece
from mountpoint.system.spill import FileRange


class Room(Protocol):
    """The memory of a data cache."""

    def take_room(self, size_bytes: int) -> bool:
        """Take memory; False if there is none. Never waits."""

    def give_room(self, size_bytes: int) -> None:
        """Give memory back."""


class KeptBodies:
    """The bodies of one upload, in order."""

    def __init__(self, room: Room | None) -> None:
        # dependencies
        self._room = room  # None: nothing is kept, from now on
        # mutable
        self._pieces: list[Piece] = []
        self._size_bytes = 0

    def add(self, body: Body) -> None:
        """Keep the next body, or give all up."""
        in_memory = not any(isinstance(each, FileRange) for each in body.pieces)
        if self._room is not None and in_memory and self._room.take_room(body.size_bytes):
            self._pieces += body.pieces
            self._size_bytes += body.size_bytes
        else:
            self.drop()

    def drop(self) -> None:
        """Give all up, now and later: the object has bytes that are not here."""
        self.give_back(self._size_bytes)
        self._room, self._pieces, self._size_bytes = None, [], 0

    def take(self) -> Body | None:
        """Return all bytes, whose memory must be given back; None if they are not here."""
        if not self._size_bytes:
            return None
        body = Body(self._pieces, self._size_bytes)
        self._pieces, self._size_bytes = [], 0
        return body

    def give_back(self, size_bytes: int) -> None:
        """Give the memory of bytes back."""
        if self._room is not None and size_bytes:
            self._room.give_room(size_bytes)
