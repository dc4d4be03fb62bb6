"""What requests cost by S3's list prices, in US dollars. An estimate: of requests only.

For objects of the storage class STANDARD, without what a contract or a free tier takes off, and
without data transfer. Prices change rarely, and nobody is asked for them here: those of a bill are
given by `--prices`. https://aws.amazon.com/s3/pricing/
"""

from collections.abc import Mapping
from typing import NamedTuple

#: Where a region is not in the table.
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
#: Those of the cheaper kind; all others are of the other one.
READS = frozenset({"GetObject", "HeadObject"})


def of_region(region: str) -> tuple[Prices, str]:
    """Return the prices of a region, and whose they are where the region's own are not known."""
    region = region if region in BY_REGION else ELSEWHERE
    return BY_REGION[region], region


def cost(requests: Mapping[str, float], prices: Prices) -> float:
    """Return what requests cost, by the names of S3's operations."""
    dollars = 0.0
    for operation, count in requests.items():
        if operation not in FREE:
            price = prices.reads if operation in READS else prices.writes
            dollars += count / 1000 * price
    return dollars
