"""Put many objects: boto3's client takes three milliseconds of CPU time for each, this one."""

import base64
import contextlib
import http.client
import urllib.parse
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import botocore.auth
import botocore.awsrequest
import botocore.credentials

THREADS = 8


def put_all(
    endpoint_url: str,
    region: str,
    access_key: str,
    secret_key: str,
    bucket: str,
    objects: Mapping[str, bytes],
) -> None:
    """Put objects into a bucket as boto3 does: signed, with their CRC-32; several in parallel."""
    credentials = botocore.credentials.Credentials(access_key, secret_key)
    signer = botocore.auth.S3SigV4Auth(credentials, "s3", region)
    scheme, host, *_ = urllib.parse.urlsplit(endpoint_url)
    connect = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection

    def put_some(number: int) -> None:
        with contextlib.closing(connect(host)) as connection:
            for key, body in islice(objects.items(), number, None, THREADS):
                checksum = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
                request = botocore.awsrequest.AWSRequest(
                    method="PUT",
                    url=f"{endpoint_url}/{bucket}/{urllib.parse.quote(key, safe='/~')}",
                    data=body,
                    headers={
                        "x-amz-sdk-checksum-algorithm": "CRC32",
                        "x-amz-checksum-crc32": checksum,
                    },
                )
                signer.add_auth(request)
                path = request.url.removeprefix(endpoint_url)
                connection.request("PUT", path, body, dict(request.headers))
                answer = connection.getresponse()
                said = answer.read()
                assert answer.status == 200, f"{key}: {answer.status} {said!r}"

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(put_some, range(THREADS)))
