"""The choice of the proxy to S3, and the CRT's settings."""

import os
import subprocess
import sys

import pytest

from mountpoint.errors import MountError
from mountpoint.s3.aws.proxy import bypassed, settle

HOST = "bucket.s3.eu-west-1.amazonaws.com"


@pytest.fixture(autouse=True)
def _nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "putenv", lambda name, value: None)


@pytest.mark.parametrize(
    ("scheme", "environ", "proxy"),
    [
        ("https", {}, None),
        ("https", {"HTTPS_PROXY": ""}, None),
        ("https", {"HTTP_PROXY": "http://p:1", "ALL_PROXY": "http://p:2"}, None),
        ("https", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https", {"HTTPS_PROXY": "http://p:1", "https_proxy": "http://q:2"}, "http://q:2"),
        ("http", {"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://q:2"}, "http://p:1"),
        ("https", {"HTTPS_PROXY": "p"}, "http://p:80"),
        ("https", {"HTTPS_PROXY": "//p:1/"}, "http://p:1"),
        ("https", {"HTTPS_PROXY": "https://p"}, "https://p:443"),
        ("https", {"HTTPS_PROXY": "http://[::1]:3128"}, "http://[::1]:3128"),
        ("https", {"HTTPS_PROXY": "http://u:s3cr3t@p:1"}, "http://p:1"),
        ("https", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "amazonaws.com"}, None),
        ("https", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "x", "no_proxy": "*"}, None),
    ],
)
def test_which(scheme: str, environ: dict[str, str], proxy: str | None) -> None:
    """By the endpoint's scheme; lower case before upper case; printed without the login."""
    found = settle(scheme, HOST, environ)
    assert (found and str(found)) == proxy
    assert "s3cr3t" not in repr(found)


@pytest.mark.parametrize(
    ("host", "no_proxy", "expected"),
    [
        ("s3.example.com", "example.com", True),
        ("s3.example.com:9000", ".Example.com", True),
        ("s3.example.com", "s3.example.com", True),
        ("s3.myexample.com", "example.com", False),
        ("s3.example.com", "a.example, b.example ,, example.com", True),
        ("s3.example.com", "", False),
        ("10.1.2.3:9000", "10.1.2.3", True),
        ("10.1.2.3:9000", "10.0.0.0/8", True),
        ("11.1.2.3:9000", "10.0.0.0/8", False),
        ("[fd00::1]:9000", "fd00::/8", True),
        ("[fd00::1]", "fd00::1", True),
        ("s3.example.com", "10.0.0.0/8", False),
    ],
)
def test_bypassed(host: str, no_proxy: str, expected: bool) -> None:
    """Names, domains, addresses and networks match, but never a part of a word."""
    assert bypassed(host, no_proxy) is expected


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://user:plain@p:1", None),
        ("http://p:1", None),
        ("http://p:1/", "http://p:1"),
        ("user:a%23%25%3Ab%20c@p:3128", "http://user:a#%:b c@p:3128"),
        ("http://user@p:1", "http://p:1"),
    ],
)
def test_proxy_url_for_the_crt(monkeypatch: pytest.MonkeyPatch, url: str, told: str | None) -> None:
    """A URL that the CRT understands stays; another is rewritten, only for the CRT."""
    said: dict[str, str] = {}
    monkeypatch.setattr(os, "putenv", said.__setitem__)
    environ = {"HTTPS_PROXY": url}
    settle("https", HOST, environ)
    assert said.get("HTTPS_PROXY") == told
    assert environ == {"HTTPS_PROXY": url}


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("socks5://user:s3cr3t@p:1080", "names a socks5 proxy"),
        ("http://", "is not the URL of a proxy"),
        ("http://p:port", "is not the URL of a proxy"),
        ("http://p:99999", "is not the URL of a proxy"),
        ("http://user:s3cr3t#x@p:1", "is not the URL of a proxy"),
        ("http://user:s3cr3t%40x@p:1", "'@', '/' or '?'"),
        ("http://user:s3cr3t@x@p:1", "'@', '/' or '?'"),
        ("http://user:s3cr3t%2F@p:1", "'@', '/' or '?'"),
    ],
)
def test_refused(url: str, what: str) -> None:
    """The error names the variable, not its value, which may have a password."""
    with pytest.raises(MountError) as caught:
        settle("https", HOST, {"HTTPS_PROXY": url})
    assert "HTTPS_PROXY" in caught.value.what
    assert what in caught.value.what
    assert caught.value.hint
    assert "s3cr3t" not in str(caught.value)


def test_the_proxy_is_set_only_for_the_crt() -> None:
    """botocore reads `os.environ`, where the password is still encoded; the CRT the C library's."""
    code = (
        "import ctypes, os\n"
        "from mountpoint.s3.aws.proxy import settle\n"
        "settle('https', 'h', os.environ)\n"
        "getenv = ctypes.CDLL(None).getenv\n"
        "getenv.restype = ctypes.c_char_p\n"
        "print(os.environ['HTTPS_PROXY'], getenv(b'HTTPS_PROXY').decode())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HTTPS_PROXY": "u:a%23@p:1", "NO_PROXY": "", "no_proxy": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stdout.split() == ["u:a%23@p:1", "http://u:a#@p:1"]
