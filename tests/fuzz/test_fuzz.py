"""The corpora of all fuzz targets, and a short run of atheris from the same seed each time."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak import TIMES, count_cases

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
TARGETS = sorted(path.stem for path in (HERE / "targets").glob("[a-z]*.py"))
#: About two seconds of a processor each.
RUNS = {"blocks": 3000, "options": 400, "fstab": 3000, "uploads_journal": 3000}
USUAL_RUNS = 6000


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    """Each kept input is read as its target promises; so are its beginnings."""
    target = importlib.import_module(f"tests.fuzz.targets.{name}")
    files = sorted((CORPUS / name).iterdir())
    assert files
    for file in files:
        data = file.read_bytes()
        target.read(data)
        for stop in range(0, len(data), max(len(data) // 20, 1)):
            target.read(data[:stop])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is for x86-64")
@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str, tmp_path: Path) -> None:
    """No mutated input breaks a promise."""
    runs = RUNS.get(name, USUAL_RUNS) * TIMES
    count_cases(runs)
    options = [f"-runs={runs}", "-seed=1", "-max_len=2048", "-timeout=20", "-rss_limit_mb=2048"]
    options += [f"-artifact_prefix={tmp_path}/", "-verbosity=0"]
    found = tmp_path / "found"
    found.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name, *options, found, CORPUS / name],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=110 * TIMES,
        check=False,
    )
    inputs = [path.read_bytes() for path in tmp_path.glob("*-*")]
    assert done.returncode == 0, f"{inputs}\n{done.stderr[-4000:]}"
