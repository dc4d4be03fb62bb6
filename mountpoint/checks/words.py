"""Sizes and durations in words."""


def size(size_bytes: int) -> str:
    """Return a size in its largest unit: 12 bytes, 3.4 KiB, 70.0 MiB."""
    if size_bytes < 1024:
        return "1 byte" if size_bytes == 1 else f"{size_bytes} bytes"
    size, units = size_bytes / 1024, ["KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:,.1f} {units[0]}"


def duration(seconds: float) -> str:
    """Return a duration in its largest unit: 59 s, 3 min, 5 h, 12 days."""
    for unit_s, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"
