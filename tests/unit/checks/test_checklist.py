"""The list of checks: order, skipped checks, failures."""

from collections.abc import Callable

import pytest

from mountpoint.checks.checklist import Check, Result, failed, go_through, ok, skipped, warning
from mountpoint.errors import MountError


def outcomes(*checks: Check[None]) -> dict[str, Result]:
    """Run checks that do nothing."""
    return dict(go_through(checks, None))


def test_only_checks_that_need_a_failed_one_are_skipped() -> None:
    """A skipped check names the failed ones, not those skipped in between."""
    asked: list[str] = []

    def look(name: str, result: Result) -> Callable[[None], Result]:
        def check(_: None) -> Result:
            asked.append(name)
            return result

        return check

    found = outcomes(
        Check("a", look("a", failed("broken"))),
        Check("b", look("b", ok("fine"))),
        Check("c", look("c", ok("")), needs=("a", "b")),
        Check("d", look("d", failed("broken"))),
        Check("e", look("e", ok("")), needs=("c", "d")),
        Check("f", look("f", ok("fine")), needs=("b",)),
    )
    assert asked == ["a", "b", "d", "f"]
    assert found["c"] == skipped("needs a")
    assert found["e"] == skipped("needs a, d")
    assert found["f"].outcome == "ok"


@pytest.mark.parametrize("result", [warning("odd"), skipped("there is none")])
def test_a_warning_skips_no_check(result: Result) -> None:
    """Neither a warning nor a check without anything to test skips other checks."""
    found = outcomes(Check("a", lambda _: result), Check("b", lambda _: ok("fine"), needs=("a",)))
    assert found["b"].outcome == "ok"


def test_results_come_one_by_one() -> None:
    """A reader gets the first result before the second check starts."""
    checks: list[Check[None]] = [
        Check("a", lambda _: ok("fine")),
        Check("later", lambda _: pytest.fail("too early")),
    ]
    assert next(go_through(checks, None))[0] == "a"


def test_errors_are_failures() -> None:
    """A MountError becomes a failure with its hint; so does a bug, and the other checks run."""

    def refuse(_: None) -> Result:
        raise MountError("it is broken", "mend it")

    def surprise(_: None) -> Result:
        raise ZeroDivisionError("by zero")

    found = outcomes(Check("a", refuse), Check("b", surprise), Check("c", lambda _: ok("fine")))
    assert found["a"] == failed("it is broken", "mend it")
    assert found["b"].outcome == "failed"
    assert "ZeroDivisionError: by zero (test_checklist.py:" in found["b"].finding
    assert found["c"].outcome == "ok"
