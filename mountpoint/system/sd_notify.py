"""Report the mount's state to the service manager, if it asks for that (sd_notify(3)).

systemd does for services of Type=notify, which run in the foreground (packaging/systemd).
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

import socket
from collections.abc import MutableMapping

import structlog

log = structlog.get_logger(__name__)

VARIABLE = "NOTIFY_SOCKET"
#: Seconds; a working manager takes a message at once.
SEND_S = 5.0


def notify(environ: MutableMapping[str, str], **state: str) -> None:
    """Send a state, such as READY="1", and remove the variable, so that child processes send none.

    A failure is logged and not raised: the mount works without it.
    """
    address = environ.pop(VARIABLE, "")
    if not address:
        return
    message = "\n".join(f"{name}={text}" for name, text in state.items())
    if address.startswith("@"):  # the abstract namespace of unix(7)
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.settimeout(SEND_S)
            manager.sendto(message.encode("utf-8", "backslashreplace"), address)
    except (OSError, ValueError) as error:
        log.warning("the service manager could not be notified", error=str(error), state=message)
