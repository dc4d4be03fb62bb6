"""Make `mountpoint/s3/aws/bandwidth.tsv`: the network bandwidth of each EC2 instance type.

    python -m tools.bandwidth_table FILE --source TEXT > mountpoint/s3/aws/bandwidth.tsv

FILE is an answer of EC2's DescribeInstanceTypes: from `aws ec2 describe-instance-types`, or from
moto (Apache-2.0), `moto/ec2/resources/instance_types.json.gz`; TEXT says which. The figure is the
peak of all network cards together, which AWS's mount-s3 also uses: 10 for "Up to 10 Gigabit". Types
for which EC2 gives only a word ("Moderate") are omitted.
"""

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: "Up to 12.5 Gigabit", "100 Gigabit", "4x 100 Gigabit"
PERFORMANCE = re.compile(r"(?:Up to )?(?:(\d+)x )?(\d+(?:\.\d+)?) Gigabit")

#: Types that newer answers omit; some are still in use. From AWS's mount-s3, which has them from
#: DescribeInstanceTypes in us-east-1 on 2024-01-16.
OLDER = {
    "dl1": {"24xlarge": 400.0},
    "f1": {"2xlarge": 10.0, "4xlarge": 10.0, "16xlarge": 25.0},
    "g3": {"4xlarge": 10.0, "8xlarge": 10.0, "16xlarge": 25.0},
    "g3s": {"xlarge": 10.0},
    "g4ad": {"xlarge": 10.0, "2xlarge": 10.0, "4xlarge": 10.0, "8xlarge": 15.0, "16xlarge": 25.0},
    "p2": {"8xlarge": 10.0, "16xlarge": 25.0},
    "p3": {"2xlarge": 10.0, "8xlarge": 10.0, "16xlarge": 25.0},
    "u-9tb1": {"112xlarge": 100.0},
    "u-12tb1": {"112xlarge": 100.0},
    "u-18tb1": {"112xlarge": 100.0},
    "u-24tb1": {"112xlarge": 100.0},
}

HEAD = """\
# Network bandwidth of EC2 instance types, Gbit/s: the peak, all network cards together.
# Source: {source};
# types that it does not have: DescribeInstanceTypes in us-east-1 of 2024-01-16.
# Made by tools/bandwidth_table.py. Types without a figure ("Moderate") are left out.
"""


def described(answer: Any) -> Iterator[tuple[str, str]]:
    """Return each type and EC2's text about its network."""
    if "InstanceTypes" in answer:
        answer = {each["InstanceType"]: each for each in answer["InstanceTypes"]}
    for name, description in answer.items():
        yield name, description["NetworkInfo"]["NetworkPerformance"]


def bandwidth(performance: str) -> float | None:
    """Return Gbit/s, or None for a word."""
    found = PERFORMANCE.fullmatch(performance)
    return None if found is None else int(found[1] or 1) * float(found[2])


def table(answer: Any) -> dict[str, float]:
    """Return Gbit/s by type."""
    figures = {f"{family}.{size}": gbps for family in OLDER for size, gbps in OLDER[family].items()}
    for name, performance in described(answer):
        gbps = bandwidth(performance)
        if gbps is not None:
            figures[name] = gbps
    return figures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--source", required=True)
    arguments = parser.parse_args()
    data = arguments.file.read_bytes()
    text = gzip.decompress(data) if arguments.file.suffix == ".gz" else data
    print(HEAD.format(source=arguments.source), end="")
    for name, gbps in sorted(table(json.loads(text)).items()):
        print(f"{name}\t{gbps:g}")


if __name__ == "__main__":
    main()
