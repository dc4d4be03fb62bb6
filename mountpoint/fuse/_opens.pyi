"""Types of the extension module; its docstrings are in `_opens.pyx`."""

from mountpoint.metrics._histogram import Timer
from mountpoint.native._prepared import PreparedFiles

def opens_in_lane() -> int: ...
def serve_opens(files: PreparedFiles, opens: Timer, flushes: Timer, releases: Timer) -> None: ...
