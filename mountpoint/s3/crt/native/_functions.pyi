"""Types of the extension module; its docstrings are in `_functions.pyx`."""

from collections.abc import Sequence

def set_addresses(addresses: Sequence[int]) -> None: ...
