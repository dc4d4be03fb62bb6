"""The common fixture of all unit tests: a process without configured logging."""

import pytest
import structlog


@pytest.fixture(autouse=True)
def _logging_not_configured() -> None:
    """Start each test without configured logging, as a new process does."""
    structlog.reset_defaults()
