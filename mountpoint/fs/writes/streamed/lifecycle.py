"""The states of a file that is streamed, and the waits for them.

    OPEN -> UPLOADING -> SETTLED -> OPEN ...     closed or fsync'ed, and perhaps written again
    OPEN, UPLOADING -> FAILED                    unuploaded writes are discarded, later ones fail
    OPEN, SETTLED -> REMOVED                     it has lost its name: writes are discarded

A file that has FAILED may be opened again by a truncation. Its failure stays, and its next close
reports it.
"""

import math
import threading
from enum import Enum

from mountpoint.errors import Interrupted, NotPermitted

#: How long to wait for the object of a file that has been closed (`touch a; cat a`), or for the end
#: of a handle that has been closed (`cat a; echo > a`). The kernel reports the last close shortly
#: after the program has gone on, and the next program's open may overtake it.
SETTLE_S = 1.0
#: How many threads may wait so. The writer's own requests need one that does not.
MAX_WAITING = 4
#: How often a waiting thread checks whether the mount is going away.
LOOK_S = 0.25
#: How long an empty file is expected to be closed for good, once one descriptor of it has been
#: closed. Shells close one of two, and keep the other.
SOON_S = 0.2

BEING_WRITTEN = "the file is being written"
ANY_ORDER = "mount with --staged-writes DIR to read and change files while they are being written"


class State(Enum):
    """The states of a streamed file."""

    OPEN = "open"
    UPLOADING = "uploading"
    SETTLED = "settled"
    FAILED = "failed"
    REMOVED = "removed"


class Turns:
    """Lets threads wait for other writers of their files, in one mount. Thread-safe.

    `stopping` is set when the mount ends.
    """

    def __init__(self, stopping: threading.Event) -> None:
        # dependencies
        self._stopping = stopping
        # mutable
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    def wait(self, event: threading.Event, within_s: float) -> None:
        """Wait for an event; return when it is set, too late, or if too many threads wait.

        Raises Interrupted if the mount ends.
        """
        if self._waiting.acquire(blocking=False):
            try:
                for _ in range(math.ceil(within_s / LOOK_S)):
                    if event.wait(LOOK_S):
                        return
                    if self._stopping.is_set():
                        raise Interrupted("the mount is ending")
            finally:
                self._waiting.release()


class Lifecycle:
    """The state of one streamed file. Thread-safe.

    `lock` guards all of the file that its threads change. The caller holds it to change the state.
    """

    def __init__(self, turns: Turns) -> None:
        # dependencies
        self._turns = turns
        # mutable, guarded by lock; read without it, in single steps of the interpreter
        self.lock = threading.Lock()
        self.state = State.OPEN
        self.takes_writes = True  # in OPEN; an attribute, because each write looks at it
        self.failure: Exception | None = None  # what it has failed with first
        self._ended = threading.Event()
        self._closing = False  # its opener has closed a descriptor of it

    @property
    def ended(self) -> bool:
        """Whether nothing is left to upload, or never will be."""
        return self._ended.is_set()

    @property
    def removed(self) -> bool:
        """Whether it has no name any more."""
        return self.state is State.REMOVED

    @property
    def ending(self) -> bool:
        """Whether its upload is about to end, or has ended."""
        return self._closing or self.state is State.UPLOADING

    # --- steps ---

    def close(self) -> None:
        """Note that the opener has closed a descriptor: the upload will end soon."""
        self._closing = True

    def begin_upload(self) -> None:
        """Note that a thread completes the upload (lock held)."""
        if self.state is State.OPEN:
            self._become(State.UPLOADING)

    def settle(self) -> None:
        """Note that S3 has all of the file (lock held)."""
        self._become(State.SETTLED)

    def fail(self, error: Exception) -> None:
        """Note that the upload has failed for good (lock held). The first error stays."""
        self.failure = self.failure or error
        if not self.removed:
            self._become(State.FAILED)

    def reopen(self) -> None:
        """Note that writing goes on after an upload has ended (lock held)."""
        self._closing = False
        self._become(State.OPEN)

    def remove(self) -> None:
        """Note that the file has lost its name (lock held)."""
        self._become(State.REMOVED)

    def _become(self, state: State) -> None:
        self.state = state
        self.takes_writes = state is State.OPEN
        if state in (State.OPEN, State.UPLOADING):
            self._ended.clear()
        else:
            self._ended.set()

    # --- waits ---

    def wait_ended(self) -> bool:
        """Wait briefly until nothing is left to upload; return whether that is so."""
        return self._ended.wait(SETTLE_S)

    def wait_closed(self) -> None:
        """Wait very briefly for a file of which a descriptor has been closed."""
        if self._closing:
            self._ended.wait(min(SOON_S, SETTLE_S))

    def wait_uploaded(self) -> bool:
        """Wait while the upload is being completed; return whether that takes longer."""
        return self.state is State.UPLOADING and not self._ended.wait(LOOK_S)

    def wait_turn(self, within_s: float) -> None:
        """Wait for the end of the upload. Raises NotPermitted if it does not end in time."""
        self._turns.wait(self._ended, max(within_s, SETTLE_S) if self.ending else within_s)
        self.check_ended()

    def check_ended(self) -> None:
        """Raise NotPermitted if something is left to upload."""
        if not self.ended:
            raise NotPermitted(BEING_WRITTEN, ANY_ORDER)
