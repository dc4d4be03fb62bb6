"""Measure uploads without a mount: `python -m bench.uploading --endpoint-url URL BUCKET`.

Uses a client, a memory budget and `Uploads`, as a mount does. Files are written in parallel, each
by one thread, and then completed. A server that discards bodies shows the limit of the client.
"""

import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import click

from mountpoint.config import ClientConfig, WriteConfig
from mountpoint.metrics.counters import Counters
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.crt.client import CrtClient
from mountpoint.s3.retry import RetryPolicy
from mountpoint.transfer.memory_budget import Budget
from mountpoint.upload.uploads import Uploads

MIB = 1 << 20


@click.command()
@click.argument("bucket")
@click.option("--endpoint-url", default="http://127.0.0.1:9000")
@click.option("--files", default=1)
@click.option("--size-mib", default=1024.0, help="Size of each file.")
@click.option("--write-kib", default=128, help="Size of each write.")
@click.option("--checksum", type=click.Choice(["crc32c", "crc64nvme", "off"]), default="crc32c")
@click.option("--memory-mib", default=256)
def main(
    bucket: str,
    endpoint_url: str,
    files: int,
    size_mib: float,
    write_kib: int,
    checksum: str,
    memory_mib: int,
) -> None:
    """Write files and print the speed."""
    counters = Counters()
    host = urlsplit(endpoint_url).netloc
    endpoint = Endpoint(urlsplit(endpoint_url).scheme, host, f"/{bucket}", "us-east-1", "s3", "v4")
    client = CrtClient(endpoint, None, ClientConfig(), counters=counters)
    retry_policy = RetryPolicy(
        try_s=10.0, total_s=60.0, stopping=threading.Event(), counters=counters
    )
    config = WriteConfig(checksum=None if checksum == "off" else checksum)  # type: ignore[arg-type]
    budget = Budget(memory_mib * MIB)
    uploads = Uploads(client, config, budget, retry_policy)
    size, step = int(size_mib * MIB), write_kib << 10
    source = os.urandom(step)

    def write(number: int) -> int:
        upload = uploads.upload(b"bench/%d" % number)
        most = 0
        for start in range(0, size, step):
            data = source[:1] + source[1 : size - start]  # new memory, like llfuse's
            upload.write(start, data)
            most = max(most, budget.held_bytes)
        upload.finish()
        return most

    began_s, cpu_s = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(min(files, 16)) as pool:
        most = max(pool.map(write, range(files)))
    took_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
    total = files * size
    rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{files} x {size_mib:g} MiB, writes of {write_kib} KiB, {checksum}: "
        f"{total / took_s / 1e6:.0f} MB/s, {cpu_s / (total / 1e9):.2f} CPU-s/GB, "
        f"{files / took_s:.1f} files/s, RSS {rss_mib:.0f} MiB, budget {most / MIB:.0f} MiB"
    )
    print({name: count for name, count in counters.snapshot().items() if count})
    client.close()


if __name__ == "__main__":
    main()
