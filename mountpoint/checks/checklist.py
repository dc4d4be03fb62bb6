"""Run a list of checks in order; a check that needs a failed one is skipped.

This module knows neither the checks nor their presentation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from mountpoint.errors import MountError
from mountpoint.mount import daemon

T = TypeVar("T")
Outcome = Literal["ok", "warning", "failed", "skipped"]
Detail = str | int | float


@dataclass(frozen=True, slots=True)
class Result:
    """A check's finding in one line, and a hint.

    `details` holds the same information for programs, by name.
    """

    outcome: Outcome
    finding: str
    hint: str = ""
    details: Mapping[str, Detail] = field(default_factory=dict)


def ok(finding: str, **details: Detail) -> Result:
    """Return a success."""
    return Result("ok", finding, details=details)


def warning(finding: str, hint: str = "", **details: Detail) -> Result:
    """Return a finding that does not prevent mounting, but that the user should know."""
    return Result("warning", finding, hint, details)


def failed(finding: str, hint: str = "", **details: Detail) -> Result:
    """Return a fault that prevents mounting."""
    return Result("failed", finding, hint, details)


def skipped(why: str) -> Result:
    """Return that there was nothing to check."""
    return Result("skipped", why)


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """One line of the list. `look` may raise MountError instead of returning a failure.

    `name` must not change: programs use it. `needs` names earlier checks.
    """

    name: str
    look: Callable[[T], Result]
    needs: tuple[str, ...] = ()


def go_through(checks: Sequence[Check[T]], subject: T) -> Iterator[tuple[str, Result]]:
    """Yield each check's name and result, as soon as it is known.

    The reason for a skipped check names the checks that failed, not the skipped ones in between. A
    check that had nothing to check does not cause others to be skipped.
    """
    failures: dict[str, list[str]] = {}  # the failed checks behind each failed or skipped check
    for check in checks:
        missing = list(
            dict.fromkeys(name for need in check.needs for name in failures.get(need, ()))
        )
        result = skipped(f"needs {', '.join(missing)}") if missing else _result(check, subject)
        if missing or result.outcome == "failed":
            failures[check.name] = missing or [check.name]
        yield check.name, result


def _result(check: Check[T], subject: T) -> Result:
    try:
        return check.look(subject)
    except MountError as error:
        return failed(error.what, error.hint)
    except Exception as error:  # run the other checks all the same
        surprise = daemon.unexpected(error, "this is a fault of mount-s3: --debug shows where")
        return failed(surprise.what, surprise.hint)
