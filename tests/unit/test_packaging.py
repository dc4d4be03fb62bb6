"""What is shipped beside the program, as its own linters see it."""

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"


def clean(*command: str | Path) -> None:
    """Run a linter of the environment; it has to find nothing. Skip where it is missing."""
    program = Path(sys.executable).with_name(str(command[0]))
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [program, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_shell() -> None:
    """Scripts of the shell: shellcheck."""
    clean("shellcheck", *PACKAGING.rglob("*.sh"))


def test_yaml() -> None:
    """Image Builder's component and the pod: yamllint."""
    clean("yamllint", "--strict", "-c", PACKAGING / "yamllint.yml", PACKAGING)


def test_container() -> None:
    """The recipe of the image: hadolint."""
    clean("hadolint", PACKAGING / "container" / "Containerfile")


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes(version: str) -> None:
    """The pod, by the API's schemas: of the first version that knows sidecars, and a late one."""
    clean("kubernetes-validate", "--strict", "-k", version, PACKAGING / "kubernetes" / "pod.yml")
