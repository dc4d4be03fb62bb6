"""Events of a mount, and the metrics after them."""

from typing import Any

from hypothesis import strategies as st

from mountpoint.metrics.export.families import Family, families
from mountpoint.metrics.recorder import Meters

#: Events of a mount, in any order.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 1 << 21)),
        st.tuples(st.just("written"), st.integers(0, 1 << 21)),
        st.tuples(st.sampled_from(("open", "lookup")), st.booleans()),
        st.tuples(st.sampled_from(("GetObject", "HeadObject")), st.sampled_from((None, 0, 404))),
    ),
    max_size=30,
)


def happen(meters: Meters, events: list[tuple[str, Any]]) -> None:
    """Record these events."""
    for name, value in events:
        if name in ("read", "written"):
            getattr(meters, name)(value)
        elif name[0].islower():
            timer = meters.operation(name)
            timer.end(timer.begin(), value)
        else:
            meters.request(name).end(value)


def now(meters: Meters) -> list[Family]:
    """Return the metrics that AWS's mount-s3 has."""
    return families(meters.snapshot(), 1 << 20)
