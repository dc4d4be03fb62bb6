"""S3's list prices of requests in US dollars, for an estimate.

They are for storage class STANDARD, without discounts, free tier and data transfer. Prices change
rarely, so they are a table here; `--prices` sets those of a bill.
https://aws.amazon.com/s3/pricing/
"""

from collections.abc import Mapping
from typing import NamedTuple

#: The prices for regions that are not in the table.
ELSEWHERE = "us-east-1"


class Prices(NamedTuple):
    """Dollars for 1,000 PUT, COPY, POST or LIST requests, and for 1,000 of the others."""

    writes: float
    reads: float


BY_REGION = {
    "us-east-1": Prices(0.005, 0.0004),
    "us-east-2": Prices(0.005, 0.0004),
    "us-west-1": Prices(0.0055, 0.00044),
    "us-west-2": Prices(0.005, 0.0004),
    "eu-west-1": Prices(0.005, 0.0004),
    "eu-west-2": Prices(0.0053, 0.00042),
    "eu-central-1": Prices(0.0054, 0.00043),
    "ap-northeast-1": Prices(0.0047, 0.00037),
    "ap-northeast-2": Prices(0.0045, 0.00035),
    "ap-south-1": Prices(0.005, 0.0004),
    "ap-southeast-1": Prices(0.005, 0.0004),
    "sa-east-1": Prices(0.007, 0.00056),
}

#: Requests that cost nothing.
FREE = frozenset({"DeleteObject", "AbortMultipartUpload"})
#: Requests of the cheaper kind; all others are of the other kind.
READS = frozenset({"GetObject", "HeadObject"})


def of_region(region: str) -> tuple[Prices, str]:
    """Return a region's prices, and the region they belong to if its own are unknown."""
    region = region if region in BY_REGION else ELSEWHERE
    return BY_REGION[region], region


def cost(requests: Mapping[str, float], prices: Prices) -> float:
    """Return the cost of requests in dollars, from their numbers by S3 operation."""
    dollars = 0.0
    for operation, count in requests.items():
        if operation not in FREE:
            price = prices.reads if operation in READS else prices.writes
            dollars += count / 1000 * price
    return dollars
