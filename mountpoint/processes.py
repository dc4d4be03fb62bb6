"""Who closes a file: what /proc says of the processes that the kernel names.

FUSE tells with a request the number of the *thread* that made it; 0 if it is in another
container. A file is closed by close(2), by execve(2), or for a process by its end, however it
ends: only /proc tells an orderly end from a kill.

A process that closes files in execve(2) holds a lock meanwhile, for which all wait that read its
`stat` (and much else, so `ps` too): it would wait for us, and we for it, for ever. `status` can
always be read, and tells who is ending: that process has no memory any more.
"""

#: include/linux/sched.h: the process is ending.
PF_EXITING = 0x4
#: Fields of /proc/PID/stat behind the name in brackets, the state being 0: proc_pid_stat(5).
_FLAGS, _EXIT_CODE = 6, 49
#: The signal that ended it, as in the status of waitpid(2).
_SIGNAL = 0x7F


def process_of(thread: int) -> int:
    """Return the process that a thread belongs to; the thread's own number if that is not known."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            for line in file:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except (OSError, ValueError):
        pass
    return thread


def was_killed(thread: int) -> bool:
    """Whether a process is ending because of a signal. What cannot be known counts as no."""
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            if b"\nVmSize:" in file.read():
                return False
        with open(f"/proc/{thread}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        exiting = int(fields[_FLAGS]) & PF_EXITING
        return bool(exiting and int(fields[_EXIT_CODE]) & _SIGNAL)
    except (OSError, ValueError, IndexError):
        return False
