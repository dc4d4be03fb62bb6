"""Hosts with ports, as in URLs."""

from mountpoint.system.addresses import authority


def test_an_ipv6_address_is_in_brackets() -> None:
    """Without brackets its last group would look like the port."""
    assert authority("::1", 443) == "[::1]:443"
    assert authority("127.0.0.1", 80) == "127.0.0.1:80"
    assert authority("s3.example.com", 443) == "s3.example.com:443"
