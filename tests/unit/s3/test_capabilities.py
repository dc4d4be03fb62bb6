"""What a store does not support: which refusals mean that, and what is known after them."""

import pytest

from mountpoint.errors import (
    AccessDenied,
    ChecksumsNotOffered,
    NotOffered,
    PreconditionFailed,
    S3Error,
    ServerFault,
)
from mountpoint.s3.capabilities import Capabilities

NOT_OFFERED = NotOffered("NotImplemented", status=501)
NO_CHECKSUMS = ChecksumsNotOffered("no")


def test_all_features_by_default() -> None:
    """Nothing is missing until the store refuses it."""
    known = Capabilities()
    assert known.unconditional == set()
    assert known.checksums
    assert known.copies_parts
    assert known.equal_parts is False


@pytest.mark.parametrize("error", [AccessDenied("no"), PreconditionFailed("no"), ServerFault("no")])
def test_other_errors_say_nothing(error: S3Error) -> None:
    """Only the refusal of a feature is one."""
    known = Capabilities()
    assert not known.refused(error, "write", condition=True, checksums=True)
    assert not known.refused_copied_part(error)
    assert known == Capabilities()


def test_conditions_are_refused_by_operation() -> None:
    """A store that refuses conditions of copies may accept those of writes."""
    known = Capabilities()
    assert known.refused(NOT_OFFERED, "copy", condition=True, checksums=True)
    assert known.unconditional == {"copy"}
    assert known.checksums


def test_checksums_are_refused() -> None:
    """A refusal that names checksums, or of a request without a condition, is about checksums."""
    for error, condition in ((NO_CHECKSUMS, True), (NOT_OFFERED, False)):
        known = Capabilities()
        assert known.refused(error, "write", condition=condition, checksums=True)
        assert not known.checksums
        assert known.unconditional == set()


def test_a_request_with_neither() -> None:
    """Without a condition and checksums there is nothing to leave out."""
    known = Capabilities()
    assert not known.refused(NOT_OFFERED, "write", condition=False, checksums=False)
    assert known == Capabilities()


@pytest.mark.parametrize(
    "error", [NOT_OFFERED, S3Error("no", status=400), S3Error("no", status=405)]
)
def test_copied_parts(error: S3Error) -> None:
    """Unknown: the store copies none. After one was copied, the refusal has another reason."""
    known = Capabilities(copies_parts=None)
    assert known.refused_copied_part(error)
    assert known.copies_parts is False
    assert known.refused_copied_part(error)
    assert not Capabilities(copies_parts=True).refused_copied_part(error)


def test_parts_of_one_size() -> None:
    """Such a store shows itself by the code; one that took unequal parts never does."""
    error = S3Error("no", code="InvalidPart")
    known = Capabilities(equal_parts=None)
    assert not known.refused_unequal_parts(S3Error("no", code="InternalError"))
    assert known == Capabilities(equal_parts=None)
    assert known.refused_unequal_parts(error)
    assert known == Capabilities(equal_parts=True)
    took = Capabilities(equal_parts=None)
    took.took_unequal_parts()
    assert not took.refused_unequal_parts(error)
    assert took == Capabilities(equal_parts=False)
