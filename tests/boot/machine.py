"""A machine with its own systemd: systemd-nspawn boots a root that debootstrap made.

The root is made once and kept (`.state/boot/`). Changes of a machine go to its own layer above the
root, which survives reboots and is removed with the machine. A machine has its own processes,
mounts and services, but shares the kernel and the network of this machine, so it can use an S3
server on loopback.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.mount.mounting import eventually

REPOSITORY = Path(__file__).parents[2]
EC2 = REPOSITORY / "packaging" / "ec2"
CLEAN_ROOT = REPOSITORY / "tools" / "clean-root"
TARGET = "debian-12"
PACKAGES = ["systemd", "systemd-sysv", "dbus", "python3", "python3-venv"]
#: The result of `packaging/build-wheels debian-12`.
WHEELS = Path(os.environ.get("MOUNT_S3_WHEELS", REPOSITORY / "dist" / "wheels" / TARGET))
#: Without it systemd supports no automounts.
AUTOFS = Path("/dev/autofs")
#: Their place in the machine.
FOLDER = "/srv/wheels"
#: The place of `packaging/ec2/user-data.sh` in the machine.
SCRIPT = "/srv/user-data.sh"

MAKE_ROOT_S = 900.0
BOOT_S = 60.0
COMMAND_S = 100.0
HALT_S = 60.0

#: The machine does not inherit the host's variables.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


def why_not() -> str | None:
    """Return why no machine can be booted here, or None."""
    if os.getuid() != 0:
        return "booting a machine needs root"
    for program in ("systemd-nspawn", "nsenter", "debootstrap"):
        if shutil.which(program) is None:
            return f"{program} is missing: apt install systemd-container util-linux debootstrap"
    if not CLEAN_ROOT.exists():
        return "tools/clean-root is missing"
    if not list(WHEELS.glob("mount_s3-*.whl")):
        return f"there are no wheels in {WHEELS}: packaging/build-wheels {TARGET}"
    return None


def make_root() -> Path:
    """Return the root; make it if it does not exist."""
    root = REPOSITORY / ".state" / "boot" / "root"
    if not root.exists():
        unfinished = root.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [CLEAN_ROOT, "make", TARGET, unfinished, *PACKAGES],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=MAKE_ROOT_S,
        )
        unfinished.rename(root)
    return root


class Machine:
    """One machine. `layers` are the folders that it consists of, the topmost first."""

    def __init__(self, folder: Path, layers: list[Path]) -> None:
        self.root = folder / "root"
        self._folder = folder
        self._changes = folder / "changes"
        self._nspawn: subprocess.Popen[bytes] | None = None
        for path in (self.root, self._changes, folder / "work"):
            path.mkdir()
        lower = ":".join(map(str, layers))
        options = f"lowerdir={lower},upperdir={self._changes},workdir={folder / 'work'}"
        subprocess.run(
            ["mount", "-t", "overlay", "-o", options, "overlay", self.root], check=True, timeout=30
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            print(self.console)
        self.halt()
        subprocess.run(["umount", self.root], check=True, timeout=30)

    @property
    def layer(self) -> Path:
        """The changes of this machine, as a layer for other machines."""
        return self._changes

    @property
    def console(self) -> str:
        """The console output of the boot."""
        log = self._folder / "console"
        return log.read_text(errors="replace") if log.exists() else ""

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def boot(self, *, until: str = "multi-user.target") -> None:
        """Boot, and return when systemd has reached the unit."""
        with (self._folder / "console").open("ab") as console:
            self._nspawn = subprocess.Popen(
                [
                    "systemd-nspawn",
                    "--quiet",
                    f"--directory={self.root}",
                    f"--machine=mount-s3-test-{os.getpid()}",
                    "--register=no",
                    # Without a systemd outside nothing can create a scope.
                    *([] if Path("/run/systemd/system").exists() else ["--keep-unit"]),
                    "--bind=/dev/fuse",
                    *(["--bind=/dev/autofs"] if AUTOFS.exists() else []),
                    f"--bind-ro={WHEELS}:{FOLDER}",
                    "--boot",
                ],
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        eventually(lambda: self.state(until) == "active", within_s=BOOT_S)

    def halt(self) -> None:
        """Shut down in order, or by force if that takes too long."""
        nspawn, self._nspawn = self._nspawn, None
        if nspawn is None:
            return
        nspawn.terminate()
        try:
            nspawn.wait(HALT_S)
        except subprocess.TimeoutExpired:
            nspawn.send_signal(signal.SIGKILL)
            nspawn.wait()
            raise

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the booted machine; return its output, including errors."""
        inside = ["nsenter", f"--target={self._leader()}", "--all", "--root", "--wd"]
        done = subprocess.run(
            [*inside, *command],
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{self.journal()}"
        return done.stdout

    def chroot(self, script: str) -> None:
        """Run a shell script in the machine, without booting it."""
        wheels = self.root / FOLDER.lstrip("/")
        wheels.mkdir(exist_ok=True)
        inner = f'mount --bind {WHEELS} {wheels} && exec chroot {self.root} sh -ec "$1"'
        subprocess.run(
            ["unshare", "--mount", "sh", "-c", inner, "sh", script],
            env=ENVIRONMENT,
            check=True,
            timeout=COMMAND_S,
        )

    def state(self, unit: str) -> str:
        """Return the output of `systemctl is-active`; "" if systemd does not answer yet."""
        try:
            return self.run("systemctl", "is-active", unit, check=False).strip()
        except LookupError:
            return ""

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def journal(self) -> str:
        """Return the end of the journal."""
        return self.run("journalctl", "--no-pager", "--lines=40", check=False)

    def mounts(self) -> list[str]:
        """Return the mounts of mount-s3, alive or dead, without access to them."""
        lines = self.run("cat", "/proc/self/mountinfo").splitlines()
        return [line.split()[4] for line in lines if " fuse.mount-s3 " in line]

    def _leader(self) -> int:
        """Return the process that is number 1 inside. LookupError if there is none."""
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise AssertionError(f"systemd-nspawn has ended: {self.console}")
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text()
        for child in children.split():
            status = Path(f"/proc/{child}/status").read_text().split("\n")
            if any(line.startswith("NSpid:") and line.split()[-1] == "1" for line in status):
                return int(child)
        raise LookupError("it has not begun to boot")


def wait_for(machine: Machine, unit: str, state: str, *, within_s: float = 60.0) -> None:
    """Wait until a unit reaches a state; on failure show the journal."""
    deadline = time.monotonic() + within_s
    while (found := machine.state(unit)) != state:
        assert time.monotonic() < deadline, f"{unit} is {found}\n{machine.journal()}"
        time.sleep(0.2)
