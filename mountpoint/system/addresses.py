"""Pure: server addresses in URLs."""


def authority(host: str, port: int) -> str:
    """Return a host or address with its port, as in URLs: RFC 3986, section 3.2."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
