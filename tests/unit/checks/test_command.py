"""The names of all checks, and the document."""

import re
from pathlib import Path

from mountpoint.checks.command import CHECKS

DOCUMENT = Path(__file__).parents[3] / "docs" / "check.md"


def test_names_are_unique_and_need_earlier_ones() -> None:
    """Names are unique, because programs use them; a check needs only earlier ones."""
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for index, check in enumerate(CHECKS):
        assert re.fullmatch("[a-z_]+", check.name)
        assert set(check.needs) <= set(names[:index])


def test_the_document_has_all_names_in_their_order() -> None:
    """docs/check.md explains each check, in the same order."""
    section = DOCUMENT.read_text().partition("## JSON")[0]
    rows = re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE)
    assert rows == [check.name for check in CHECKS]
