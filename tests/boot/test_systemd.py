"""The shipped unit, and /etc/fstab, with a systemd that boots."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.boot.machine import AUTOFS, REPOSITORY, Machine, wait_for
from tests.boot.server import DIRECTORY, SERVICE, credentials, options
from tests.mount.mounting import eventually
from tools.servers import SeaweedFS

# The first test makes the root.
pytestmark = pytest.mark.timeout(1200)

#: Kills only the process that serves /mnt/fstab.
KILL = """
for process in /proc/[0-9]*; do
    tr '\\0' ' ' <$process/cmdline | grep -q '/mount-s3 .* /mnt/fstab ' || continue
    kill -KILL ${process#/proc/} && exit
done
exit 1
"""
UNIT = REPOSITORY / "packaging" / "systemd" / "mount-s3@.service"


@pytest.fixture
def configured(machine: Machine, server: SeaweedFS) -> Machine:
    """A machine with the unit and its bucket, not booted yet."""
    machine.write("/etc/systemd/system/mount-s3@.service", UNIT.read_text())
    machine.write("/root/.aws/credentials", credentials(server))
    configure(machine, server)
    return machine


def configure(machine: Machine, server: SeaweedFS, *more: str) -> None:
    """Write the unit's configuration."""
    machine.write(
        "/etc/mount-s3/data.conf",
        f"BUCKET=s3://{server.bucket}/boot/\n"
        f"DIRECTORY={DIRECTORY}\n"
        f"OPTIONS={' '.join([*options(server), *more])}\n",
    )


def enable(machine: Machine) -> None:
    """Start the unit at boot, as `systemctl enable` does."""
    machine.chroot(f"systemctl enable -q {SERVICE}")


def fstab(server: SeaweedFS) -> str:
    """Return a line of /etc/fstab for /mnt/fstab."""
    items = ["_netdev", "nofail", *(word.lstrip("-") for word in options(server))]
    # A value follows its name.
    text = ",".join(items).replace("endpoint-url,", "endpoint-url=").replace("region,", "region=")
    return f"s3://{server.bucket}/boot/ /mnt/fstab fuse.mount-s3 {text} 0 0\n"


@contextlib.contextmanager
def silent(server: SeaweedFS) -> Iterator[None]:
    """The server exists, but does not answer."""
    pid = server.pid_if_running
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_started_and_stopped(configured: Machine, server: SeaweedFS) -> None:
    """The unit is active when files can be read, and not before.

    After a stop nothing is mounted.
    """
    configured.boot()
    with silent(server):
        configured.run("systemctl", "start", "--no-block", SERVICE)
        time.sleep(5)
        assert configured.state(SERVICE) == "activating"
        assert configured.mounts() == []
    configured.run("systemctl", "start", SERVICE)
    assert configured.run("cat", f"{DIRECTORY}/file") == "content"
    assert "is mounted at /mnt/data" in configured.show(SERVICE, "StatusText")
    assert "is mounted at /mnt/data" in configured.run("journalctl", "--unit", SERVICE)

    configured.run("sh", "-c", f"echo written >{DIRECTORY}/new")
    configured.run("systemctl", "stop", SERVICE)
    assert configured.state(SERVICE) == "inactive"
    assert configured.show(SERVICE, "Result") == "success"
    assert configured.mounts() == []
    written = server.client().get_object(Bucket=server.bucket, Key="boot/new")["Body"].read()
    assert written == b"written\n"


def test_killed(configured: Machine, server: SeaweedFS) -> None:
    """If its process or its whole control group is killed, the bucket is mounted again."""
    configure(configured, server, "--no-keep-alive")
    configured.boot()
    configured.run("systemctl", "start", SERVICE)
    for restarts, who in enumerate(("main", "all"), 1):
        configured.run("systemctl", "kill", f"--kill-who={who}", "--signal=KILL", SERVICE)

        def is_restarted(times: int = restarts) -> bool:
            return configured.show(SERVICE, "NRestarts") == str(times)

        eventually(is_restarted, within_s=30)
        wait_for(configured, SERVICE, "active")
        assert configured.mounts() == [DIRECTORY]
        assert configured.run("cat", f"{DIRECTORY}/file") == "content"


#: A program that has a file open, and reads from it again and again, past the kernel's cache.
READER = """
import os, time
file = os.open("/mnt/data/file", os.O_RDONLY | os.O_DIRECT)
while not os.path.exists("/run/end"):
    assert os.pread(file, 4096, 0) == b"content"
    with open("/run/reads", "a") as reads:
        reads.write("x")
os.close(file)
"""


def test_kept(configured: Machine, server: SeaweedFS) -> None:
    """An open file outlives all processes of the service, and its restart.

    A stop unmounts nevertheless.
    """
    configured.write("/srv/reader.py", READER)
    configured.boot()
    configured.run("systemctl", "start", SERVICE)
    run = ("systemd-run", "--unit=reader", "--remain-after-exit")
    configured.run(*run, "python3", "/srv/reader.py")

    def count() -> int:
        return len(configured.run("cat", "/run/reads", check=False))

    def goes_on() -> None:
        before = count()
        eventually(lambda: count() > before + 100, within_s=60)

    eventually(lambda: configured.run("ls", "/run").count("reads") == 1)
    goes_on()
    configured.run("systemctl", "kill", "--kill-who=all", "--signal=KILL", SERVICE)
    eventually(lambda: configured.show(SERVICE, "NRestarts") == "1", within_s=30)
    wait_for(configured, SERVICE, "active")
    goes_on()
    configure(configured, server, "--read-timeout", "30")
    configured.run("systemctl", "restart", SERVICE)
    goes_on()
    assert configured.state(SERVICE) == "active"
    assert configured.mounts() == [DIRECTORY]
    journal = configured.run("journalctl", "--unit", SERVICE)
    assert "cannot go on" not in journal
    assert "removed the dead mount" not in journal
    configured.run("touch", "/run/end")
    eventually(lambda: configured.show("reader", "SubState") == "exited")
    assert configured.show("reader", "Result") == "success"
    configured.run("systemctl", "stop", SERVICE)
    assert configured.mounts() == []
    assert configured.show(SERVICE, "NFileDescriptorStore") == "0"


def test_mounts_of_other_processes_stay(configured: Machine, server: SeaweedFS) -> None:
    """A working mount of another process stays."""
    configured.boot()
    configured.run("mkdir", DIRECTORY)
    configured.run("mount-s3", f"s3://{server.bucket}/boot/", DIRECTORY, *options(server))
    configured.run("systemctl", "start", "--no-block", SERVICE)
    wait_for(configured, SERVICE, "activating")
    eventually(lambda: configured.show(SERVICE, "NRestarts") == "1", within_s=30)
    assert "is already a mount point" in configured.run("journalctl", "--unit", SERVICE)
    assert configured.run("cat", f"{DIRECTORY}/file") == "content"


def test_wrong_options(configured: Machine, server: SeaweedFS) -> None:
    """Wrong options are not tried again, and the journal says what is wrong."""
    configure(configured, server, "--no-such-option")
    configured.boot()
    configured.run("systemctl", "start", SERVICE, check=False)
    assert configured.state(SERVICE) == "failed"
    assert configured.show(SERVICE, "NRestarts") == "0"
    assert "--no-such-option" in configured.run("journalctl", "--unit", SERVICE)


def test_at_boot(configured: Machine, server: SeaweedFS) -> None:
    """The unit and a line in /etc/fstab are mounted at boot, and the boot waits for neither."""
    configured.write("/etc/fstab", fstab(server))
    enable(configured)
    with silent(server):
        configured.boot(until="multi-user.target")
        time.sleep(2)
        assert configured.state(SERVICE) == "activating"
        assert configured.state("mnt-fstab.mount") == "activating"
        assert configured.state("multi-user.target") == "active"
        assert configured.mounts() == []
    wait_for(configured, SERVICE, "active")
    wait_for(configured, "mnt-fstab.mount", "active")
    assert sorted(configured.mounts()) == [DIRECTORY, "/mnt/fstab"]
    for directory in (DIRECTORY, "/mnt/fstab"):
        assert configured.run("cat", f"{directory}/file") == "content"
    assert "remote-fs" in configured.show("mnt-fstab.mount", "WantedBy")
    configured.run("systemctl", "stop", "mnt-fstab.mount")
    assert configured.mounts() == [DIRECTORY]


@pytest.mark.skipif(not AUTOFS.exists(), reason="this kernel has no autofs")
def test_automount(configured: Machine, server: SeaweedFS) -> None:
    """With x-systemd.automount the first access mounts the bucket, also after a kill."""
    line = fstab(server).replace("_netdev,", "_netdev,noauto,x-systemd.automount,auto-unmount,")
    configured.write("/etc/fstab", line)
    configured.boot()
    assert configured.state("mnt-fstab.automount") == "active"
    assert configured.mounts() == []
    assert configured.run("cat", "/mnt/fstab/file") == "content"
    assert configured.mounts() == ["/mnt/fstab"]
    configured.run("sh", "-c", KILL)
    eventually(lambda: configured.mounts() == [], within_s=30)
    assert configured.run("cat", "/mnt/fstab/file") == "content"


def test_the_next_boot(configured: Machine) -> None:
    """After a shutdown while the bucket is mounted, the machine mounts it again."""
    enable(configured)
    configured.boot()
    wait_for(configured, SERVICE, "active")
    before = time.monotonic()
    configured.halt()
    assert time.monotonic() - before < 45, "the mount has held up the shutdown"
    configured.boot()
    wait_for(configured, SERVICE, "active")
    assert configured.run("cat", f"{DIRECTORY}/file") == "content"
