"""The worker of a mount with a keeper: `python -m mountpoint.mount.kept.worker ARGUMENT DIRECTORY`.

It is the process that serves, as without a keeper; it reports to the keeper, and may go on with a
mount. The first worker of a mount is no program of its own (`launch`).
"""

import signal
import sys
from typing import NoReturn

from mountpoint.log.setup import log_location
from mountpoint.mount import daemon, run
from mountpoint.mount.kept.keeper import WORKER_NAME, end_with_parent, set_name
from mountpoint.mount.kept.link import Link


def main(argument: str) -> NoReturn:
    """Serve until the mount ends. `argument`: see `keeper.worker_argument`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    link = Link(argument)
    if not link.background:
        # A supervisor that kills what it has started wants to start it again, on that directory.
        end_with_parent()
    log_hint = log_location(link.config.log)
    daemon.serve(lambda ready: run.run(link.config, ready, link), link, log_hint)


if __name__ == "__main__":
    set_name(WORKER_NAME)
    main(sys.argv[1])
