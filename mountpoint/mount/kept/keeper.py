"""The keeper of a mount: a small process that holds /dev/fuse while another, the worker, serves.

The kernel ends a mount when no process has its descriptor any more. So while the keeper has it, the
death of the worker ends nothing: requests wait, and the keeper starts another worker, which goes on
(`fuse/_survival`, `fs/session`). If workers die again and again before they have served anything,
the keeper waits longer each time, and then unmounts.

`launch` runs this file as a script: it imports nothing but the interpreter's own modules, has no
threads, knows nothing of S3, and takes a few MiB. It speaks with each worker over one socket
(`link`), on which each message is a letter, with descriptors or a text.

From a worker:

* P  it is prepared: it has reached S3, or goes on with a mount that nobody serves
* R  the mount serves requests; with /dev/fuse, the kept requests, and the session's log
* L  another log in place of the last one
* F  mounting has failed, and why
* U  prepare the worker of another version
* H  hand the mount over to that one
* C  do not

To a worker:

* G  it is the one that serves; with what the one before has kept, if anything
* P  the other version is prepared
* F  it is not, and why

The end of the socket is the worker's death. The kernel says whether the mount has ended, too
(POLLERR): so each way to unmount ends the keeper as well, with the worker's exit code. A worker
that hands the mount over is killed, because any other way to end it would unmount.

In the foreground systemd is the keeper's keeper (`ServiceManager`): it keeps the same descriptors,
and the keeper that it starts next goes on (`stored`). That is the case after both processes have
died, and after a restart of the service, which SIGURG announces before the signal that ends it. Any
other end takes the descriptors back.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from types import FrameType
from typing import Any

PREPARED = b"P"
READY = b"R"
LOG = b"L"
FAILED = b"F"
UPGRADE = b"U"
HAND_OVER = b"H"
CANCEL = b"C"
GO = b"G"

MAX_MESSAGE_BYTES = 4096
MAX_STATE_BYTES = 1 << 16

#: sys/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15

#: What ps(1) and killall(1) show of the processes, which are the interpreter's programs.
NAME = b"mount-s3-keeper"
WORKER_NAME = b"mount-s3"

#: A worker that has served for so long has not failed at its start.
SERVED_S = 0.5
#: How often workers may fail one after another.
MAX_FAILURES = 10
#: The pauses before the next worker, in seconds: the first of them after the second failure.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0

#: How long the service manager may take to accept a message, in seconds.
NOTIFY_S = 5.0

#: Signals for the worker: it ends the mount, or logs its counters.
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)

#: To the keeper: the next signal that ends it is a restart of the service, so the mount has to
#: stay. To the worker: hand the mount over. Programs that do not know it ignore it.
LEAVE = signal.SIGURG

#: All signals that the keeper handles.
SIGNALS = (*FORWARDED, LEAVE)

#: What is kept besides the mount's state, in the order in which workers send it.
KINDS = ("device", "requests", "log")

#: Exit codes of a worker that was told to end.
ENDED = tuple(128 + number for number in FORWARDED[:3])

#: Programs that unmount, the first one that works.
UNMOUNT = (("fusermount", "-uz"), ("fusermount3", "-uz"), ("umount", "-l"))

GAVE_UP = "mount-s3 died {failures} times in a row at its start: the mount on {directory} has ended"


def worker_argument(
    link: int, config: int, *, takes_over: bool, unserved: bool, background: bool
) -> str:
    """Return what a worker's `Link` is made of.

    `link` and `config` are descriptors: of its end of the socket, and of the file with the mount's
    `Config`. `takes_over`: there is a mount to go on with; `unserved`: nobody serves it at present,
    so the worker must not wait for S3.
    """
    return json.dumps(
        {
            "link": link,
            "config": config,
            "takes_over": takes_over,
            "unserved": unserved,
            "background": background,
        }
    )


def kind_of(name: str) -> str:
    """Return the kind of a descriptor that the service manager keeps by this name."""
    return name.rpartition("-")[0]


def is_mounted(device: int) -> bool:
    """Whether the kernel still has the mount of a descriptor of /dev/fuse."""
    poll = select.poll()
    poll.register(device, 0)
    return not poll.poll(0)


def close_others(keep: tuple[int, ...]) -> None:
    """Close all descriptors but these and the standard ones; programs do not inherit these."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor not in keep:
            with contextlib.suppress(OSError):  # that of the listing is closed
                os.close(descriptor)
    for descriptor in keep:
        os.set_inheritable(descriptor, False)


class ServiceManager:
    """systemd, or what else listens at `address` (sd_notify(3)); nobody if that is "".

    It keeps descriptors for the next keeper, under a name of kind and number. `stored` are those
    that it has. If it does not work, the mount goes on without it.
    """

    def __init__(self, address: str, stored: dict[str, int]) -> None:
        # constants
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # mutable: number and inode of what it keeps, by kind
        self._kept: dict[str, tuple[int, int]] = {}
        for name, descriptor in stored.items():
            number = int(name.rpartition("-")[2])
            self._kept[kind_of(name)] = number, os.fstat(descriptor).st_ino

    @property
    def keeps(self) -> bool:
        """Whether it was asked to keep anything; it does so if the service is configured for it."""
        return bool(self._kept)

    def tell(self, message: str, descriptors: tuple[int, ...] = ()) -> None:
        """Send it a message. It must come from the service's main process."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        ):
            manager.settimeout(NOTIFY_S)
            manager.connect(self._address)
            socket.send_fds(manager, [message.encode()], list(descriptors))

    def keep(self, files: dict[str, int]) -> None:
        """Have it keep these files, by kind, in place of other ones of their kinds."""
        for kind, descriptor in files.items():
            number, before = self._kept.get(kind, (0, 0))
            inode = os.fstat(descriptor).st_ino
            if inode != before and self._address:
                self.tell(f"FDSTORE=1\nFDNAME={kind}-{number + 1}", (descriptor,))
                self._kept[kind] = number + 1, inode
                if number:  # only now: there is always one
                    self.drop(f"{kind}-{number}")

    def drop(self, name: str) -> None:
        """Have it close a descriptor."""
        self.tell(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def drop_all(self) -> None:
        """Have it close all descriptors."""
        for kind, (number, _) in self._kept.items():
            self.drop(f"{kind}-{number}")
        self._kept = {}


class Worker:
    """A process that serves the mount, or is to do so: a child of this one, and a socket to it."""

    def __init__(self, pid: int, link: socket.socket) -> None:
        self.pid = pid
        self.socket = link
        self.prepared = False

    @classmethod
    def start(
        cls,
        command: list[str],
        config: int,
        *,
        takes_over: bool,
        unserved: bool,
        background: bool,
    ) -> "Worker":
        """Start one. For the rest see `worker_argument`. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link = theirs.fileno()
        argument = worker_argument(
            link, config, takes_over=takes_over, unserved=unserved, background=background
        )
        inherited = (link, config)
        with theirs:
            for descriptor in inherited:
                os.set_inheritable(descriptor, True)
            try:
                command = [*command[:-1], argument, command[-1]]
                return cls(os.posix_spawn(command[0], command, os.environ), ours)
            finally:
                for descriptor in inherited:
                    os.set_inheritable(descriptor, False)

    def receive(self) -> tuple[bytes, bytes, list[int]]:
        """Return the letter of its next message, the text and descriptors; b"" if it has died."""
        flags = socket.MSG_CMSG_CLOEXEC
        try:
            data, descriptors, _, _ = socket.recv_fds(self.socket, MAX_MESSAGE_BYTES, 3, flags)
        except ConnectionResetError:  # it has died with a message that it had not read
            return b"", b"", []
        return data[:1], data[1:], descriptors

    def tell(self, message: bytes, descriptors: list[int] | None = None) -> None:
        """Send it a message, unless it has died."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self.socket, [message], descriptors or [])

    def end(self) -> int:
        """Wait until it has died; return its exit code."""
        self.socket.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code if code >= 0 else 128 - code


class Keeper:
    """The life of one mount.

    `settings`: `first`, the pid of the first worker and the `socket` to it; `worker`, the command
    that starts the next ones; `config`, a descriptor for them; `directory`; `status`, a descriptor
    on which `daemon` waits, or None in the foreground, and then `done`, the text to print when the
    mount serves requests; `state`, the descriptor of a file with what the next keeper has to know;
    `stored`, what the service manager has kept, by name; `device`, /dev/fuse if another process has
    mounted with it, and will unmount: `directory` is then only a name.

    Signals are blocked until they are handled here.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        # constants
        self._command: list[str] = settings["worker"]
        self._config: int = settings["config"]
        self._directory: str = settings["directory"]
        self._done: str = settings["done"]
        self._state: int = settings["state"]
        self._device: int | None = settings["device"]
        _keep_private()
        set_name(NAME)
        # mutable
        self._status: int | None = settings["status"]
        self._background = self._status is not None
        stored: dict[str, int] = settings["stored"]
        first: dict[str, int] = settings["first"]
        keep = [self._config, self._state, first["socket"], *stored.values()]
        if self._device is not None:
            keep.append(self._device)
        if self._status is not None:
            keep.append(self._status)
            close_others(keep=tuple(keep))
        for descriptor in keep:
            os.set_inheritable(descriptor, False)
        notify = os.environ.pop("NOTIFY_SOCKET", "")
        self._manager = ServiceManager("" if self._background else notify, stored)
        by_kind = {kind_of(name): descriptor for name, descriptor in stored.items()}
        self._kept = [by_kind[kind] for kind in KINDS if kind in by_kind]
        self._worker: Worker | None = None
        # The first one, and later one of another version.
        self._next: Worker | None = Worker(first["pid"], socket.socket(fileno=first["socket"]))
        # What the next worker is told, of the one before, and what a mount must be to go on.
        self._facts: dict[str, Any] = {"restarts": 0, "died": 0, "upgraded": False}
        self._terms: dict[str, Any] = {}
        self._load_state()
        self._ready_s: float | None = None  # when the worker began to serve (monotonic clock)
        self._ending = False
        self._may_leave = False  # the next signal is a restart of the service
        self._leaving = False
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._forward)
        signal.signal(LEAVE, self._forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def run(self) -> int:
        """Keep workers until the mount has ended; return the exit code."""
        try:
            return self._keep_alive()
        finally:
            self._end_next()
            if not self._leaving:
                self._manager.drop_all()

    def _keep_alive(self) -> int:
        failures = 0
        while True:
            self._worker = self._next or self._started(unserved=True)
            self._next = None
            if self._ending or self._leaving:  # the signal came before there was this worker
                os.kill(self._worker.pid, signal.SIGKILL)
            self._note_state(self._facts | self._after(self._worker))
            code = self._serve(self._worker)
            # A worker that ends in order has unmounted. While programs have files open, the mount
            # lives as long as this process.
            if code == 0 or not self._is_mounted():
                self._leaving = False
                return code
            # A worker that is told to end while it starts does not unmount.
            self._ending = self._ending or code in ENDED
            served = self._ready_s is not None and time.monotonic() - self._ready_s >= SERVED_S
            failures = 0 if served or self._next else failures + 1
            if failures > MAX_FAILURES:
                self._say(GAVE_UP.format(failures=failures, directory=self._directory))
            elif not self._ending and failures > 1:
                self._pause(min(FIRST_PAUSE_S * 2 ** (failures - 2), LONGEST_PAUSE_S))
            if self._leaving:
                self._note_state(self._facts)
                return 0
            if self._ending or failures > MAX_FAILURES:
                self._manager.drop_all()
                self._unmount()
                return 1 if failures > MAX_FAILURES else 0

    def _started(self, *, unserved: bool) -> Worker:
        return Worker.start(
            self._command,
            self._config,
            takes_over=True,
            unserved=unserved,
            background=self._background,
        )

    def _serve(self, worker: Worker) -> int:
        """Follow the worker until it has died; return its exit code."""
        self._ready_s = None
        if worker.prepared:
            self._go(worker)
        alive = True
        while alive:
            if self._next is not None and not self._next.prepared:
                ready, _, _ = select.select([worker.socket, self._next.socket], [], [])
                if self._next.socket in ready:
                    self._follow_next(self._next, worker)
            else:
                ready = [worker.socket]
            if worker.socket in ready:
                alive = self._follow(worker)
        self._worker = None  # a signal may come while it is reaped
        code = worker.end()
        upgraded = self._next is not None or self._leaving
        self._facts |= self._after(worker, upgraded=upgraded)
        return code

    def _after(self, worker: Worker, *, upgraded: bool = False) -> dict[str, Any]:
        """Return what the next worker is told when this one has ended."""
        restarts = self._facts["restarts"] + (not upgraded)
        return {"restarts": restarts, "died": worker.pid, "upgraded": upgraded}

    def _follow(self, worker: Worker) -> bool:
        """Handle the worker's next message; False if it has died."""
        kind, text, descriptors = worker.receive()
        if kind == PREPARED:
            self._go(worker)
        elif kind == READY:
            self._keep(descriptors)
            self._serving()
            self._store()
        elif kind == LOG:
            self._keep([*self._kept[:2], *descriptors])
            self._store()
        elif kind == FAILED and not self._kept:
            self._failed(text)
        elif kind == UPGRADE:
            self._end_next()
            try:
                self._next = self._started(unserved=False)
            except OSError as error:
                worker.tell(FAILED + str(error).encode())
        elif kind == CANCEL:
            self._end_next()
        elif kind == HAND_OVER:
            os.kill(worker.pid, signal.SIGKILL)
        elif not kind and self._next is not None and not self._next.prepared:
            self._end_next()
        return bool(kind)

    def _follow_next(self, following: Worker, worker: Worker) -> None:
        """Handle a message of the worker that is to take the mount over."""
        kind, text, _ = following.receive()
        if kind == PREPARED:
            following.prepared = True
            worker.tell(PREPARED)
        elif kind in (FAILED, b""):
            self._end_next()
            worker.tell(FAILED + (text or b"it has ended; its log may say why"))

    def _end_next(self) -> None:
        following, self._next = self._next, None
        if following is not None:
            os.kill(following.pid, signal.SIGKILL)
            following.end()

    def _go(self, worker: Worker) -> None:
        # The first worker of a mount that another process has made gets it, too.
        first = [] if self._device is None else [self._device]
        worker.tell(GO + json.dumps(self._facts).encode(), self._kept or first)

    def _keep(self, descriptors: list[int]) -> None:
        for descriptor in set(self._kept) - set(descriptors):
            os.close(descriptor)
        self._kept = descriptors

    def _store(self) -> None:
        """Have the service manager keep what the next keeper needs."""
        if self._kept and not self._ending and self._device is None:
            self._manager.keep(dict(zip(KINDS, self._kept, strict=True)) | {"state": self._state})

    def _load_state(self) -> None:
        """Go on from what the keeper before has noted."""
        noted = json.loads(os.pread(self._state, MAX_STATE_BYTES, 0))
        self._terms = noted.pop("terms", {})
        self._facts |= noted

    def _note_state(self, facts: dict[str, Any]) -> None:
        """Note what the next keeper has to know, in one write(2): this one may be killed."""
        text = json.dumps({"terms": self._terms, **facts}).encode()
        os.pwrite(self._state, text.ljust(os.fstat(self._state).st_size), 0)

    def _serving(self) -> None:
        """Note that the worker serves; the first time, detach and tell the caller."""
        self._ready_s = time.monotonic()
        if self._background:
            status, self._status = self._status, None
            if status is None:
                return
            self._detach()
            try:
                os.write(status, b"R")
            except BrokenPipeError:  # the caller is gone
                self._forward(signal.SIGTERM)
            os.close(status)
        elif self._done:
            print(self._done, flush=True)
            self._manager.tell(f"READY=1\nSTATUS={self._done}")
            self._done = ""

    def _failed(self, text: bytes) -> None:
        """Tell the caller why there is no mount."""
        if self._status is not None:
            with contextlib.suppress(BrokenPipeError):  # the caller is gone
                os.write(self._status, b"E" + text)
        elif not self._background:
            sys.stderr.write(f"Error: {text.decode('utf-8', 'replace')}\n")

    def _detach(self) -> None:
        """Give up the caller's terminal, session and working directory, as `daemon` does."""
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        os.chdir("/")

    def _is_mounted(self) -> bool:
        return bool(self._kept) and is_mounted(self._kept[0])

    def _pause(self, pause_s: float) -> None:
        """Wait, or until a signal comes."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        until_s = time.monotonic() + pause_s
        while not (self._ending or self._leaving) and (left_s := until_s - time.monotonic()) > 0:
            if poll.poll(left_s * 1000):
                self._look_for_leave()

    def _forward(self, number: int, _frame: FrameType | None = None) -> None:
        # Of signals that come at about the same time, the interpreter handles the lowest one first.
        self._look_for_leave()
        os.write(self._wake, b"\0")
        if number == LEAVE:
            return
        if number != signal.SIGUSR2:
            if self._may_leave and not self._ending:
                self._leave()
                return
            self._ending = True
            self._manager.drop_all()  # if this process is killed next, the mount shall not go on
        if self._worker is not None:
            os.kill(self._worker.pid, number)

    def _look_for_leave(self) -> None:
        """Look which signals have come, in their order."""
        with contextlib.suppress(BlockingIOError):
            if LEAVE in os.read(self._woken, 4096):
                self._may_leave = self._manager.keeps

    def _leave(self) -> None:
        """End, and leave the mount to the next keeper."""
        self._leaving = True
        if self._worker is not None:  # one that does not serve yet has nothing to finish
            number = signal.SIGKILL if self._ready_s is None else LEAVE
            os.kill(self._worker.pid, number)

    def _unmount(self) -> None:
        if self._device is not None:
            return  # with this process the mount ends, and its owner unmounts
        for program in UNMOUNT:
            command = [*program, "--", self._directory]
            try:
                pid = os.posix_spawnp(command[0], command, os.environ)
            except OSError:
                continue
            if os.waitpid(pid, 0)[1] == 0:
                return

    def _say(self, text: str) -> None:
        if not self._background:
            sys.stderr.write(f"{text}\n")
            return
        import syslog

        syslog.openlog("mount-s3", syslog.LOG_PID)
        syslog.syslog(syslog.LOG_ERR, text)


def set_name(name: bytes) -> None:
    """Give this process a name of at most 15 bytes."""
    _prctl(PR_SET_NAME, ctypes.c_char_p(name))


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that has started it ends."""
    _prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def _keep_private() -> None:
    """Hide memory and environment, as `system/memory.keep_private` does: they contain keys."""
    _prctl(PR_SET_DUMPABLE, ctypes.c_ulong(0))


def _prctl(option: int, value: ctypes.c_ulong | ctypes.c_char_p) -> None:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, value)


if __name__ == "__main__":
    sys.exit(Keeper(json.loads(sys.argv[1])).run())
