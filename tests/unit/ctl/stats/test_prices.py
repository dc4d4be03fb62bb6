"""List prices of requests."""

from mountpoint.ctl.stats.prices import BY_REGION, FREE, READS, Prices, cost, of_region
from mountpoint.s3.crt.client import REQUESTS


def test_every_request_has_a_price() -> None:
    """Each operation is free, a read, or of the expensive kind; the first two kinds exist."""
    assert set(REQUESTS) >= FREE | READS
    prices = Prices(5000.0, 1000.0)
    priced = {operation: cost({operation: 1}, prices) for operation in REQUESTS}
    assert priced["GetObject"] == priced["HeadObject"] == 1.0
    assert priced["DeleteObject"] == priced["AbortMultipartUpload"] == 0.0
    assert {priced[name] for name in set(REQUESTS) - FREE - READS} == {5.0}


def test_a_region_without_prices_names_theirs() -> None:
    """The table names the region if its prices are another region's."""
    assert of_region("eu-central-1") == (BY_REGION["eu-central-1"], "eu-central-1")
    assert of_region("mars-north-1") == (BY_REGION["us-east-1"], "us-east-1")
