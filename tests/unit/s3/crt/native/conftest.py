"""A server that answers wrongly, slowly, or not at all."""

from collections.abc import Iterator

import pytest

from tests.unit.s3.crt.native.faulty_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    it = Server()
    yield it
    it.close()
