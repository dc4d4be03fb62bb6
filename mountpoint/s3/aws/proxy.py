"""The proxy on the way to S3, as HTTPS_PROXY, HTTP_PROXY and NO_PROXY name it.

The CRT reads these variables itself whenever it connects: https goes through a tunnel (CONNECT), so
that TLS is between us and S3, and http is forwarded. It takes a URL as it stands. The other SDKs,
and botocore for the requests that get credentials, decode a password and know default ports: so
`settle` hands the CRT what they would understand, and refuses what the CRT cannot be told.

It does not know of ALL_PROXY and SOCKS, as they do not.
https://github.com/awslabs/aws-c-http/blob/main/source/proxy_connection.c
https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-proxy.html
"""

import contextlib
import ipaddress
import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass

from mountpoint.errors import MountError
from mountpoint.system.addresses import authority

_DEFAULT_PORTS = {"http": 80, "https": 443}
#: Where the CRT would see the end of a user and password, or of the whole authority.
_NOT_IN_USERINFO = frozenset("@/?")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable that names it. As text it is without user and password."""

    scheme: str
    host: str
    port: int
    variable: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{authority(self.host, self.port)}"

    @property
    def headers(self) -> dict[str, str]:
        """What to send to the proxy. Without a password nobody sends a user's name."""
        if not self.password:
            return {}
        login = b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Proxy-Authorization": f"Basic {login}"}

    def literal_url(self) -> str:
        """Return the URL as the CRT takes it: nothing in it is encoded."""
        login = f"{self.user}:{self.password}@" if self.password else ""
        return f"{self.scheme}://{login}{authority(self.host, self.port)}"


def settle(scheme: str, host: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy by which the CRT will reach `host`, made understandable to it, or None.

    `host` may have a port. Raise MountError for a proxy that cannot be used.
    """
    variable, url = _named(scheme, environ)
    if not url or bypassed(host, environ.get("no_proxy") or environ.get("NO_PROXY", "")):
        return None
    proxy = _parse(variable, url)
    if proxy.literal_url() != url:
        # Past `os.environ`, from which botocore reads: it decodes the password, once.
        os.putenv(variable, proxy.literal_url())
    return proxy


def bypassed(host: str, no_proxy: str) -> bool:
    """Whether NO_PROXY names `host`: by its name, a domain, an address, a network, or "*".

    Ports are not looked at: neither are they by the CRT.
    """
    name = urlsplit(f"//{host}").hostname or ""
    if proxy_bypass(name, {"no": no_proxy}):
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name)
        for entry in no_proxy.split(","):
            with contextlib.suppress(ValueError):
                if address in ipaddress.ip_network(entry.strip(), strict=False):
                    return True
    return False


def _named(scheme: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return which variable names a proxy, and its value; the lower case one counts first."""
    for variable in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
        if url := environ.get(variable, ""):
            return variable, url
    return "", ""


def _parse(variable: str, url: str) -> Proxy:
    """Return what a URL says. No message may show it: there may be a password in it."""
    example = f"for example {variable}=http://proxy.example.com:3128"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url.removeprefix('//')}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or " " in host:
        raise MountError(
            f"{variable} is not the URL of a proxy",
            f"{example}; in a password '#' is written %23, and so on",
        )
    if parts.scheme not in _DEFAULT_PORTS:
        raise MountError(
            f"{variable} names a {parts.scheme} proxy: only http and https proxies can be used",
            f"{example}; or NO_PROXY=HOST, if S3 can be reached without it",
        )
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if _NOT_IN_USERINFO & set(user + password) or ":" in user:
        raise MountError(
            f"the password in {variable} has '@', '/' or '?' in it, which cannot be sent",
            "choose another one, or a proxy on this machine that logs in to that one",
        )
    port = port or _DEFAULT_PORTS[parts.scheme]
    return Proxy(parts.scheme, host, port, variable, user, password)
