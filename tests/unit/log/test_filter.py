"""Filters of the log."""

import pytest

from mountpoint.errors import MountError
from mountpoint.log.filter import parse_filter


@pytest.mark.parametrize("part", ["debgu", "awscrt=loud", "=debug", "a b=debug", "x[span]=debug"])
def test_bad_filter_names_the_part(part: str) -> None:
    """The message names the invalid part, and lists the levels."""
    with pytest.raises(MountError) as caught:
        parse_filter(f"warn,{part}")
    assert f"'{part}'" in caught.value.what
    assert "trace" in caught.value.hint
