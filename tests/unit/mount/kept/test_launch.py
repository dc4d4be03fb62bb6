"""The start of a keeper that cannot be started. tests/mount/test_keep_alive.py has the others."""

import subprocess
import sys
from pathlib import Path

import pytest

#: mount-s3, where the interpreter cannot be executed again.
PROGRAM = """
import sys
from mountpoint.cli.main import main
sys.executable = "/nowhere/python"
main(prog_name="mount-s3")
"""


@pytest.mark.parametrize("mode", [[], ["--foreground"]], ids=["background", "foreground"])
def test_no_keeper(tmp_path: Path, mode: list[str]) -> None:
    """One error says what is wrong and what to do; no process is left."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "bucket", str(tmp_path), "--no-log", *mode],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: /nowhere/python could not be started to keep the mount: No such file or directory\n"
        "mount with --no-keep-alive, which needs no second process\n"
    )
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], check=False).returncode == 1
