"""Read files through the mount, so that its caches keep them, and check that they have.

Files go through these hands, each a thread or several:

1. the finder asks the mount what its caches lack of them (`state`);
2. readers read that, at the pace at which the mount can keep it (`pace`);
3. the checker asks again. What was not kept is read again, up to `ROUNDS` times in all.

Files are read with O_DIRECT. So all reads go to the mount, even of files whose pages the kernel
has, and these pages stay as other programs need them.
"""

import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from mountpoint.ctl.warm.pace import Pace
from mountpoint.ctl.warm.state import MAX_PATHS, Asked, CacheState, FileState, batches
from mountpoint.ctl.warm.tally import Tally
from mountpoint.ctl.words import size

ROUNDS = 3
#: Found files that wait for readers.
MAX_WAITING = 10_000
#: Files are checked together, if they were read within these seconds.
CHECK_S = 0.1
#: Blocks of a file that was read may be queued for so long, while others are written. Without a
#: queue this long: a busy mount may not have come to queue them.
QUEUED_S = 30.0
SOON_S = 2.0
#: How often progress is shown.
SHOW_S = 0.2
#: A read may wait for S3 for long. After an interruption only this long is waited for the threads.
END_S = 2.0

NOT_KEPT = "is its limit too small, or its disk full?"
NOT_SENT = "the cache bucket did not get it: the log of the mount says why"


@dataclass(frozen=True, slots=True)
class Job:
    """A file with ranges to read, for the `round`-th time; `read_s` is when that was done."""

    state: FileState
    round: int = 1
    read_s: float = 0.0


class Warming:
    """Warms files of a mount. Call `run` once."""

    def __init__(self, mount: Asked, tally: Tally, *, jobs: int) -> None:
        # dependencies
        self._mount = mount
        self._tally = tally
        self._stopping = threading.Event()
        self._state = CacheState(mount, self._stopping)
        self._pace = Pace(lambda: self._state.queues().written, self._stopping)
        self._sending_pace = Pace(lambda: self._state.queues().sent, self._stopping)
        # constants
        self._jobs = jobs
        # mutable, guarded by _changed
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._read: deque[Job] = deque()
        self._unsettled = 0
        self._over = False
        self._failure: BaseException | None = None

    def run(self, paths: Iterable[str], show: Callable[[], None]) -> None:
        """Warm the files, and call `show` again and again. Raises MountError if the mount ends."""
        work = [lambda: self._find(paths), self._check, *([self._reader] * self._jobs)]
        threads = [
            threading.Thread(target=self._guarded, args=(each,), daemon=True) for each in work
        ]
        for thread in threads:
            thread.start()
        try:
            with self._changed:
                while not self._over:
                    self._changed.wait(SHOW_S)
                    show()
        finally:
            self._stop()
            until_s = time.monotonic() + END_S
            for thread in threads:
                thread.join(max(until_s - time.monotonic(), 0))
        if self._failure is not None:
            raise self._failure

    def estimate(self, paths: Iterable[str], show: Callable[[], None]) -> None:
        """Only ask what there is to do. Raises MountError."""
        for batch in batches(paths):
            for state in self._state.of(batch)[0]:
                self._note(state)
            show()
        self._tally.all_found = True

    # --- the hands ---

    def _find(self, paths: Iterable[str]) -> None:
        for batch in batches(paths):
            states, _ = self._state.of(batch)
            jobs = [Job(state) for state in states if self._note(state) and not state.is_warm]
            with self._changed:
                self._changed.wait_for(lambda: self._over or len(self._waiting) < MAX_WAITING)
                if self._over:
                    return
                self._unsettled += len(jobs)
                self._waiting += jobs
                self._changed.notify_all()
        with self._changed:
            self._tally.all_found = True
            self._settle(0)

    def _note(self, state: FileState) -> bool:
        """Count a file that was found; return whether anything is known about it."""
        if state.problem:
            self._tally.fail(self._full(state), state.problem)
            return False
        self._tally.found(state)
        if state.is_warm and not state.too_large:
            self._tally.settled()
        return True

    def _reader(self) -> None:
        buffer = memoryview(mmap.mmap(-1, self._pace.chunk_bytes))
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._waiting)
                if self._over:
                    return
                job = self._waiting.popleft()
                self._changed.notify_all()
            done = self._read_one(job.state, buffer)
            with self._changed:
                if done:
                    self._read.append(Job(job.state, job.round, time.monotonic()))
                    self._changed.notify_all()
                else:
                    self._settle(1)

    def _read_one(self, state: FileState, buffer: memoryview) -> bool:
        """Read what is missing of a file; False if that failed."""
        left_bytes = state.missing_bytes
        try:
            file = os.open(self._full(state), os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            try:
                for start, stop in state.to_read:
                    while start < stop and not self._over:
                        piece = buffer[: stop - start]
                        with self._admitted(state, len(piece)):
                            length = os.preadv(file, [piece], start)
                        if not length:
                            raise OSError(0, "the file has become shorter")
                        start += length
                        if state.missing:  # else the directory has it
                            left_bytes -= length
                            self._tally.fetched(length)
            finally:
                os.close(file)
        except OSError as error:
            self._tally.fail(self._full(state), error.strerror or str(error), left_bytes)
            return False
        return True

    @contextmanager
    def _admitted(self, state: FileState, size_bytes: int) -> Iterator[None]:
        """Read inside, when the queues have room for it."""
        with ExitStack() as queues:
            if state.missing:
                queues.enter_context(self._pace.reading(size_bytes))
            if state.unsent:
                queues.enter_context(self._sending_pace.reading(size_bytes))
            yield

    def _check(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._over or self._read)
                if self._over:
                    return
            self._stopping.wait(CHECK_S)
            with self._changed:
                jobs = [self._read.popleft() for _ in range(min(len(self._read), MAX_PATHS))]
            by_path = {job.state.path: job for job in jobs}
            for batch in batches(by_path):
                states, queues = self._state.of(batch)
                for state in states:
                    self._judge(by_path[state.path], state, queued=not queues.are_empty)

    def _judge(self, job: Job, state: FileState, *, queued: bool) -> None:
        """Decide what becomes of a file that was read; `queued`: the cache may still get it."""
        within_s = QUEUED_S if queued else SOON_S
        if not state.is_warm and time.monotonic() < job.read_s + within_s:
            with self._changed:
                self._read.append(job)
            return
        if not state.is_warm and job.round < ROUNDS:
            self._tally.again(state)
            with self._changed:
                self._waiting.append(Job(state, job.round + 1))
                self._changed.notify_all()
            return
        if state.problem:
            self._tally.fail(self._full(state), state.problem)
        elif state.unsent:
            self._tally.fail(self._full(state), NOT_SENT)
        elif state.missing:
            missing = size(state.missing_bytes)
            self._tally.fail(self._full(state), f"the cache did not keep {missing}: {NOT_KEPT}")
        else:
            self._tally.settled(sent=job.state.unsent)
        with self._changed:
            self._settle(1)

    # --- the end ---

    def _settle(self, jobs: int) -> None:
        """Note that nothing more is done for some files (lock held)."""
        self._unsettled -= jobs
        if self._tally.all_found and not self._unsettled:
            self._over = True
            self._changed.notify_all()

    def _stop(self) -> None:
        self._stopping.set()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a thread; what it raises ends all of them, and is raised by `run`."""
        try:
            work()
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
            self._stop()

    def _full(self, state: FileState) -> str:
        return os.path.join(self._mount.directory, state.path)
