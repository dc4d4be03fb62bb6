"""The common fixture of all unit tests: a process without configured logging."""

from collections.abc import Iterator

import pytest
import structlog

from mountpoint.s3 import retry


@pytest.fixture(autouse=True)
def _logging_not_configured() -> None:
    """Start each test without configured logging, as a new process does."""
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def short_pauses() -> Iterator[pytest.MonkeyPatch]:
    """Shorten the pauses between tries for the tests of a module, which may change more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "FIRST_PAUSE_S", 0.001)
        patch.setattr(retry, "LONGEST_PAUSE_S", 0.01)
        yield patch
