"""32-bit programs without large-file support can use stat, readdir and statfs."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import mounted

pytestmark = pytest.mark.mount

#: Makes the system calls of such a program's C library, without the library: those of i386 with
#: 32-bit numbers. The exit code has a bit for each failed call.
SOURCE = r"""
__asm__(".globl _start\n_start: mov %esp, %eax\npush %eax\ncall run");

static int call(int number, int first, int second, int third) {
    int result;
    __asm__ volatile("int $0x80" : "=a"(result)
                     : "a"(number), "b"(first), "c"(second), "d"(third) : "memory");
    return result;
}

enum { EXIT = 1, OPEN = 5, STATFS = 99, STAT = 106, GETDENTS = 141 };

void run(int *stack) {
    static char buffer[4096];
    int directory = stack[2], file = stack[3], failed = 0, got;
    if (call(STAT, file, (int)buffer, 0) < 0) failed |= 1;
    int opened = call(OPEN, directory, 0, 0);
    while ((got = call(GETDENTS, opened, (int)buffer, sizeof buffer)) > 0) {}
    if (got < 0) failed |= 2;
    if (call(STATFS, directory, (int)buffer, 0) < 0) failed |= 4;
    call(EXIT, failed, 0, 0);
}
"""
OF_NUMBERS = 1 | 2


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program. The test is skipped if it cannot be built or run."""
    path = tmp_path_factory.mktemp("program") / "calls"
    flags = ["-m32", "-nostdlib", "-static", "-ffreestanding", "-fno-stack-protector", "-no-pie"]
    try:
        built = subprocess.run(
            ["gcc", *flags, "-fno-pie", "-x", "c", "-", "-o", path],
            input=SOURCE,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no gcc")
    if built.returncode != 0:
        pytest.skip(f"no program of 32 bits can be built here: {built.stderr[:200]}")
    try:
        result = subprocess.run([path, "/proc", "/proc/self/stat"], check=False)
    except OSError as error:
        pytest.skip(f"no program of 32 bits runs here: {error.strerror}")
    assert result.returncode == 0
    return path


@pytest.mark.parametrize(("options", "failed"), [([], OF_NUMBERS), (["--inode32"], 0)])
def test_calls(store: Store, folder: Path, program: Path, options: list[str], failed: int) -> None:
    """With --inode32 all three calls work; without it only statfs does."""
    store.put("short/file", b"1")
    with mounted(store, folder, "--prefix", "short/", *options) as mount:
        result = subprocess.run([program, mount.path, mount.path / "file"], check=False)
        assert result.returncode == failed
        (entry,) = os.scandir(mount.path)
        assert entry.inode() == entry.stat().st_ino == os.stat(mount.path / "file").st_ino
        assert (entry.inode() < 1 << 32) == (not failed)
