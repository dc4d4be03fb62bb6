"""What all unit tests share: a process whose logging is not set up."""

import pytest
import structlog


@pytest.fixture(autouse=True)
def _logging_not_configured() -> None:
    """Begin as a new process does, whatever other tests have configured."""
    structlog.reset_defaults()
