"""The proxy to S3, from HTTPS_PROXY, HTTP_PROXY and NO_PROXY.

The CRT reads these variables itself at each connection. It sends https through a tunnel (CONNECT),
so TLS stays between us and S3, and has the proxy forward http. It takes the URL literally. Other
SDKs, and botocore when it fetches credentials, decode the password and know default ports. So
`settle` rewrites the URL for the CRT, and rejects one that the CRT cannot use.

Like the other SDKs, the CRT ignores ALL_PROXY and does not support SOCKS.
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
#: The CRT would end the user and password, or the whole authority, at one of these.
_NOT_IN_USERINFO = frozenset("@/?")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy and the variable that names it. `str` omits user and password."""

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
        """The headers for the proxy. A user name is sent only with a password."""
        if not self.password:
            return {}
        login = b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"Proxy-Authorization": f"Basic {login}"}

    def literal_url(self) -> str:
        """Return the URL in the CRT's form, without percent-encoding."""
        login = f"{self.user}:{self.password}@" if self.password else ""
        return f"{self.scheme}://{login}{authority(self.host, self.port)}"


def settle(scheme: str, host: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy through which the CRT will reach `host`, or None.

    Rewrites the variable for the CRT. `host` may include a port. Raises MountError if the proxy
    cannot be used.
    """
    variable, url = _named(scheme, environ)
    if not url or bypassed(host, environ.get("no_proxy") or environ.get("NO_PROXY", "")):
        return None
    proxy = _parse(variable, url)
    if proxy.literal_url() != url:
        # Bypass `os.environ`: botocore reads the original there and decodes the password once.
        os.putenv(variable, proxy.literal_url())
    return proxy


def bypassed(host: str, no_proxy: str) -> bool:
    """Whether NO_PROXY names `host`: by its name, domain, address, network, or "*".

    Ports are ignored, as the CRT ignores them.
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
    """Return the variable that names a proxy, and its value; lower case takes precedence."""
    for variable in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
        if url := environ.get(variable, ""):
            return variable, url
    return "", ""


def _parse(variable: str, url: str) -> Proxy:
    """Parse a proxy's URL. Error messages must not show it: it may contain a password."""
    example = f"for example {variable}=http://proxy.example.com:3128"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url.removeprefix('//')}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or " " in host:
        raise MountError(
            f"{variable} is not the URL of a proxy",
            f"{example}; in a password write '#' as %23, and so on",
        )
    if parts.scheme not in _DEFAULT_PORTS:
        raise MountError(
            f"{variable} names a {parts.scheme} proxy, but only http and https proxies work",
            f"{example}; or NO_PROXY=HOST, if S3 can be reached without it",
        )
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if _NOT_IN_USERINFO & set(user + password) or ":" in user:
        raise MountError(
            f"the password in {variable} contains '@', '/' or '?', which cannot be sent",
            "change the password, or use a proxy on this machine that logs in to that one",
        )
    port = port or _DEFAULT_PORTS[parts.scheme]
    return Proxy(parts.scheme, host, port, variable, user, password)
