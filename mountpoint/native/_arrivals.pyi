"""Types of the extension module; its docstrings are in `_arrivals.pyx`."""

class Arrival:
    def settled(self, error: Exception | None) -> None: ...
