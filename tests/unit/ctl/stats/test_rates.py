"""The difference of two answers."""

from mountpoint.ctl.stats.rates import difference
from mountpoint.metrics.counters import Counters
from mountpoint.metrics.recorder import Meters
from tests.unit.ctl.answers import answer


def test_the_difference_of_two_answers() -> None:
    """Sums are subtracted, also in buckets; levels are those of the second answer."""
    meters, counters = Meters(), Counters()
    meters.read(100)
    meters.request("GetObject").end(404)
    counters.add("gets")
    before = answer(meters, counters, 10.0)
    meters.read(5000)
    meters.request("GetObject").end(404)
    meters.request("GetObject").end(500)
    meters.operation("open").begin()
    counters.add("gets", 2)
    found = difference(answer(meters, counters, 12.0), before)
    assert found["at_s"] == 12.0
    assert found["counters"]["gets"] == 2
    assert found["counters"]["heads"] == 0
    read = found["meters"]["read_bytes"]
    assert (read["count"], read["total"], sum(read["buckets"])) == (1, 5000, 1)
    assert found["meters"]["requests"]["GetObject"]["failures"] == {"404": 1, "500": 1}
    assert found["meters"]["operations"]["open"]["under_way"] == 1
