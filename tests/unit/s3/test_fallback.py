"""Requests are sent with the optional headers that the store supports."""

from concurrent.futures import Future

import pytest

from mountpoint.errors import AccessDenied, ChecksumsNotOffered, NotOffered, S3Error
from mountpoint.s3.capabilities import Capabilities, Operation
from mountpoint.s3.client import ALWAYS, NEW
from mountpoint.s3.fallback import Fallback, Terms

BOTH = Terms(NEW, checksums=True)


class Sent:
    """A request, and the optional headers of each try."""

    def __init__(self, capabilities: Capabilities, operation: Operation, terms: Terms) -> None:
        self.terms: list[Terms] = []
        self.fallback = Fallback(capabilities, operation, terms, self._send)

    def _send(self, terms: Terms) -> "Future[None]":
        self.terms.append(terms)
        return Future()

    def refused_with(self, *errors: S3Error) -> list[bool]:
        """Start the request, and again after each error; return whether another one was sent."""
        self.fallback.start()
        told = []
        for error in errors:
            told.append(self.fallback.applies(error))
            self.fallback.start()
        return told


@pytest.mark.parametrize(
    ("error", "left"),
    [(NotOffered(), Terms(ALWAYS, checksums=True)), (ChecksumsNotOffered(), Terms(NEW))],
)
def test_refused_headers_are_omitted(error: S3Error, left: Terms) -> None:
    """The request is repeated without the refused header, and later ones omit it."""
    capabilities = Capabilities()
    sent = Sent(capabilities, "write", BOTH)
    assert sent.refused_with(error) == [True]
    assert sent.terms == [BOTH, left]
    later = Sent(capabilities, "write", BOTH)
    later.refused_with()
    assert later.terms == [left]


def test_conditions_go_first() -> None:
    """An error that names neither first counts for the condition, then for the checksum."""
    sent = Sent(Capabilities(), "write", BOTH)
    assert sent.refused_with(NotOffered(), NotOffered(), NotOffered()) == [True, True, False]
    assert sent.terms[1:3] == [Terms(ALWAYS, checksums=True), Terms()]


def test_operations_differ() -> None:
    """A store that refuses conditions of copies may support those of writes."""
    capabilities = Capabilities()
    Sent(capabilities, "copy", Terms(NEW)).refused_with(NotOffered())
    for operation, terms in (("copy", Terms()), ("write", Terms(NEW)), ("delete", Terms(NEW))):
        sent = Sent(capabilities, operation, Terms(NEW))  # type: ignore[arg-type]
        sent.refused_with()
        assert sent.terms == [terms]


def test_other_errors_are_the_requests_own() -> None:
    """Other errors prove nothing about the store, so all headers stay."""
    capabilities = Capabilities()
    sent = Sent(capabilities, "write", BOTH)
    assert sent.refused_with(AccessDenied("no")) == [False]
    assert capabilities == Capabilities()
