"""A list of checks, gone through in order: what needs something that failed is skipped.

It knows neither what is checked nor how it is shown.
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
    """What a check has found, in one line, and what to do about it.

    `details` is the same for programs, by name.
    """

    outcome: Outcome
    finding: str
    hint: str = ""
    details: Mapping[str, Detail] = field(default_factory=dict)


def ok(finding: str, **details: Detail) -> Result:
    """Return that it is as it should be."""
    return Result("ok", finding, details=details)


def warning(finding: str, hint: str = "", **details: Detail) -> Result:
    """Return what does not keep anybody from mounting, and should be known."""
    return Result("warning", finding, hint, details)


def failed(finding: str, hint: str = "", **details: Detail) -> Result:
    """Return what has to be put right before a mount works."""
    return Result("failed", finding, hint, details)


def skipped(why: str) -> Result:
    """Return that there was nothing to look at."""
    return Result("skipped", why)


@dataclass(frozen=True, slots=True)
class Check(Generic[T]):
    """One line of the list. `look` may raise MountError in place of returning a failure.

    `name` stays what it is: programs know it. `needs` are the names of checks before it.
    """

    name: str
    look: Callable[[T], Result]
    needs: tuple[str, ...] = ()


def go_through(checks: Sequence[Check[T]], subject: T) -> Iterator[tuple[str, Result]]:
    """Yield each check's name and result, as soon as there is one.

    What a skipped check needs are those that failed, over however many others it needs them. A
    check that had nothing to look at is missed by nobody.
    """
    failures: dict[str, list[str]] = {}  # by name: what failed, of the check or of what it needs
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
    except Exception as error:  # the others are worth knowing all the same
        surprise = daemon.unexpected(error, "this is a fault of mount-s3: --debug shows where")
        return failed(surprise.what, surprise.hint)
