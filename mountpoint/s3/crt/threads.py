"""The CRT's threads, as Python knows them.

Python makes a state for a foreign thread that calls it, and forgets it when the call returns. The
CRT calls four to five times per request, and each time Python maps and unmaps memory for that
state: a fifth of the time of a small request (a LIST of one name took 0.46 ms, and takes 0.36).
A state that is held once more than it is let go stays until the process ends; there are a few
threads, each with 20 KB.
"""

import ctypes
import threading

_kept = threading.local()


def keep_state() -> None:
    """Have Python keep the state of the thread that calls this. To be called by each callback."""
    if not hasattr(_kept, "yes"):
        _kept.yes = True
        ctypes.pythonapi.PyGILState_Ensure()
