"""Checks of the path to the endpoint, step by step: name, connection, TLS, clock."""

import ipaddress
import time
from functools import partial

from mountpoint.checks.checklist import Result, failed, ok, skipped, warning
from mountpoint.checks.subject import Subject, known, within
from mountpoint.checks.words import duration
from mountpoint.errors import MountError, TransportFault
from mountpoint.s3 import network_probe
from mountpoint.s3.connect import mount_error
from mountpoint.system.addresses import authority

#: Seconds, by resolv.conf(5): two tries of five seconds per server, usually one or two servers.
NAME_S = 20.0

#: S3 rejects signatures that are 15 minutes off:
#: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html (RequestTimeTooSkewed)
REFUSED_SKEW_S = 15 * 60
NOTABLE_SKEW_S = 60

HIDDEN = "the endpoint is behind a TLS proxy: the check 'bucket' shows if it answers"


def dns(subject: Subject) -> Result:
    """Resolve the endpoint's name, or the proxy's, which resolves the endpoint's."""
    by = subject.proxy
    name, port = (by.host, by.port) if by else network_probe.host_and_port(known(subject.endpoint))
    try:
        what, hint = "name resolution", "check the network, and /etc/resolv.conf"
        subject.addresses = within(NAME_S, what, hint, partial(network_probe.addresses, name, port))
    except OSError as error:
        raise _unreachable(subject, error) from error
    found = list(dict.fromkeys(address for _, (address, _) in subject.addresses))
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return ok(
            f"{name} has the address {', '.join(found[:3])}{', …' * (len(found) > 3)}",
            address=found[0],
        )
    return skipped(f"{name} is an IP address")


def connection(subject: Subject) -> Result:
    """Connect through each configured interface."""
    for interface in subject.config.client.interfaces or ("",):
        if subject.connection is not None:
            subject.connection.close()
        begun_s = time.monotonic()
        try:
            subject.connection = network_probe.connected(subject.addresses, interface)
        except OSError as error:
            raise _unreachable(subject, error, interface) from error
        took_ms = (time.monotonic() - begun_s) * 1e3
    address, port = known(subject.connection).getpeername()[:2]
    shown = authority(address, port)
    return ok(
        f"{shown} accepts connections, in {took_ms:.1f} ms", address=shown, ms=round(took_ms, 1)
    )


def tls(subject: Subject) -> Result:
    """Check the server's certificate."""
    where = known(subject.endpoint)
    if where.scheme == "http":
        return skipped("the endpoint is http: requests are not encrypted")
    if _is_hidden(subject):
        return skipped(HIDDEN)
    name, _ = network_probe.host_and_port(where)
    try:
        if subject.proxy is not None:
            known(subject.connection).close()
            subject.connection = network_probe.tunnel(where, subject.proxy)
        secure = network_probe.handshake(
            known(subject.connection), name, subject.config.client.ca_bundle
        )
    except TransportFault as fault:
        raise mount_error(subject.config.bucket, where.host, fault) from fault
    except OSError as error:
        raise _unreachable(subject, error) from error
    subject.connection = secure
    version = secure.version() or ""
    return ok(f"{version}, the certificate is trusted", version=version)


def clock(subject: Subject) -> Result:
    """Compare the server's clock with ours."""
    if _is_hidden(subject):
        return skipped(HIDDEN)
    try:
        skew_s = network_probe.skew_s(
            known(subject.connection), known(subject.endpoint), subject.proxy
        )
    except OSError as error:
        return skipped(f"the endpoint sent no date: {_reason(error)}")
    if skew_s is None:
        return skipped("the endpoint sent no date")
    off_s = round(abs(skew_s))
    which = "behind" if skew_s > 0 else "ahead of"
    if off_s < NOTABLE_SKEW_S:
        return ok("within a minute of the endpoint's", skew_s=round(skew_s))
    said = f"it is {duration(off_s)} {which} the endpoint's"
    hint = "set it: timedatectl set-ntp true, or chronyc makestep"
    signed = subject.credentials is not None
    judged = failed if signed and off_s >= REFUSED_SKEW_S else warning
    why = (
        ": S3 refuses requests if the clock is wrong by more than 15 minutes"
        if judged is failed
        else ""
    )
    return judged(said + why, hint, skew_s=round(skew_s))


def _is_hidden(subject: Subject) -> bool:
    """Whether the server is behind an https proxy, which would need TLS within TLS."""
    return subject.proxy is not None and subject.proxy.scheme == "https"


def _unreachable(subject: Subject, error: OSError, interface: str = "") -> MountError:
    by = f" by {interface}" if interface else ""
    by += f" by the proxy {subject.proxy}" if subject.proxy is not None else ""
    fault = TransportFault(_reason(error) + by)
    return mount_error(subject.config.bucket, known(subject.endpoint).host, fault)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
