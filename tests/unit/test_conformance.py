"""`make conformance`: what is said of cases, and the list of those that fail."""

import pytest

from tests.conformance.expected import Group, compare, read_list
from tests.conformance.suites import Case, read_pjdfstest

LINKS = Group("no links", "posix", ("link::*", "symlink::one"))
TIMES = Group("times vary", "posix", ("time",), on="staged", varies=True)

OUTPUT = """
link::one                                      FAILED
\tcalled `Result::unwrap()` on an `Err` value: EPERM
open::two                                      ok
open::three                                    skipped
\tRemounts are not allowed

Summary: 1 failed, 1 skipped, 1 passed, 0 expected failures, {total} total
"""


def test_output_of_pjdfstest() -> None:
    """Each line with an outcome is a case."""
    cases = read_pjdfstest(OUTPUT.format(total=3))
    assert [(case.name, case.outcome) for case in cases] == [
        ("link::one", "failed"),
        ("open::two", "passed"),
        ("open::three", "skipped"),
    ]
    assert "EPERM" in cases[0].detail


@pytest.mark.parametrize("output", [OUTPUT.format(total=4), "error: no such user"])
def test_incomplete_output(output: str) -> None:
    """A run that ended early, or that cannot be read, is an error."""
    with pytest.raises(ValueError, match="did not end as expected"):
        read_pjdfstest(output)


@pytest.mark.parametrize(
    ("mount", "case", "problem"),
    [
        ("streamed", Case("open", "failed", "EIO"), "open failed: EIO"),
        ("streamed", Case("link::a", "passed"), "link::a passed, but the list says: no links"),
        ("streamed", Case("time", "failed", "later"), "time failed: later"),
        ("streamed", Case("link::a", "failed"), None),
        ("streamed", Case("open", "passed"), None),
        ("streamed", Case("link::a", "skipped"), None),
        ("staged", Case("time", "failed"), None),
        ("staged", Case("time", "passed"), None),
    ],
)
def test_unexpected(mount: str, case: Case, problem: str | None) -> None:
    """A case fails exactly if the list says so; one that varies may do both."""
    others = [Case("link::b", "failed"), Case("symlink::one", "failed"), Case("time", "skipped")]
    result = compare("posix", mount, 1.0, [*others, case], [LINKS, TIMES])
    assert result.problems == ([] if problem is None else [problem])


def test_pattern_without_case() -> None:
    """The list names no case that does not exist."""
    result = compare("posix", "streamed", 1.0, [Case("link::a", "failed")], [LINKS])
    assert result.problems == ["symlink::one names no case"]


def test_counts() -> None:
    """Each case is counted once."""
    cases = [Case("link::a", "failed"), Case("symlink::one", "failed")]
    cases += [Case("open", "passed"), Case("acl", "skipped"), Case("read", "failed")]
    cases += [Case("time", "passed")]
    result = compare("posix", "staged", 1.0, cases, [LINKS, TIMES])
    assert (result.cases, result.passed, result.varied, result.skipped) == (6, 1, 1, 1)
    assert (result.expected, len(result.problems)) == ({"no links": 2}, 1)


def test_the_list() -> None:
    """Each group gives another reason, and each pattern stands once for a mount."""
    groups = read_list()
    assert len({group.reason for group in groups}) == len(groups)
    patterns = [(group.suite, group.on, each) for group in groups for each in group.cases]
    assert len(set(patterns)) == len(patterns)
