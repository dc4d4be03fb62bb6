"""Tell the service manager how it goes, as sd_notify(3) does, where it has asked for that.

systemd does for services of Type=notify, which are started in the foreground (packaging/systemd).
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

import socket
from collections.abc import MutableMapping

import structlog

log = structlog.get_logger(__name__)

VARIABLE = "NOTIFY_SOCKET"
#: The manager's socket takes a message at once, or something is wrong with it.
SEND_S = 5.0


def notify(environ: MutableMapping[str, str], **state: str) -> None:
    """Send the state, such as READY="1", and let no child of ours do so: the variable is removed.

    That it cannot be sent is logged and no error: the mount serves all the same.
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
        log.warning("the service manager could not be told", error=str(error), state=message)
