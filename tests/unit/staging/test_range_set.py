"""A set of byte ranges, compared with a set of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from mountpoint.staging.range_set import Ranges

SPOTS = st.integers(0, 40)


@given(st.lists(st.tuples(st.booleans(), SPOTS, SPOTS)), SPOTS, SPOTS)
def test_ranges_are_a_set_of_numbers(
    steps: list[tuple[bool, int, int]], start: int, stop: int
) -> None:
    """Adding, removing and queries match a set of the single bytes."""
    ranges, model = Ranges(), set[int]()
    for add, first, last in steps:
        if add:
            ranges.add(first, last)
            model |= set(range(first, last))
        else:
            ranges.remove(first, last)
            model -= set(range(first, last))
        ranges.check()
        assert {each for pair in ranges for each in range(*pair)} == model
    asked = set(range(start, stop))
    assert {each for pair in ranges.within(start, stop) for each in range(*pair)} == model & asked
    assert {each for pair in ranges.gaps(start, stop) for each in range(*pair)} == asked - model
    assert all(first < last for first, last in ranges.within(start, stop))
    assert all(first < last for first, last in ranges.gaps(start, stop))
    assert ranges.size_bytes() == len(model)
