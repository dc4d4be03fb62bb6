"""The options for metrics: their meaning, and refusals before the start."""

import pytest

from mountpoint.config import MetricsConfig
from mountpoint.errors import MountError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:9100", ("::1", 9100)),
        ("[fe80::1%eth0]:9100", ("fe80::1%eth0", 9100)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    """Without a host it is only this machine."""
    assert MetricsConfig(prometheus=text).prometheus_address == address


@pytest.mark.parametrize(
    "text", ["", ":", "9100", ":70000", ":1x", "a b:1", "::1:9100", "http://h:1", "h:1/metrics"]
)
def test_invalid_addresses(text: str) -> None:
    """The message shows the value, with an example."""
    with pytest.raises(MountError) as caught:
        MetricsConfig(prometheus=text)
    assert f"'{text}' is not ADDRESS:PORT" in caught.value.what


@pytest.mark.parametrize(
    "url",
    ["http://localhost:4318", "https://h/", "http://[::1]:4318/api/v1/otlp", "http://h/v1/metrics"],
)
def test_urls(url: str) -> None:
    """With and without a path."""
    assert MetricsConfig(otlp_endpoint=url).otlp_endpoint == url


@pytest.mark.parametrize(
    "url",
    ["", "localhost:4318", "http://", "http://u:p@h", "http://h?a=b", "http://h/ x", "grpc://h"],
)
def test_invalid_urls(url: str) -> None:
    """A URL with a query or a password is refused:

    an added path would be lost, or a password shown.
    """
    with pytest.raises(MountError, match="is not the URL of a collector"):
        MetricsConfig(otlp_endpoint=url)


@pytest.mark.parametrize("seconds", [0, -1, 86_401])
def test_intervals_out_of_range(seconds: int) -> None:
    """From a second to a day."""
    with pytest.raises(MountError, match="--otlp-export-interval"):
        MetricsConfig(otlp_endpoint="http://h", otlp_interval_s=seconds)
