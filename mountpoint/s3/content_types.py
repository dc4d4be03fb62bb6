"""Pure: the content type of an object by its name, and the new type after a rename.

A type follows the name only if it came from the old name or is a store's default. Any other type
was set on purpose, and stays.
"""

import mimetypes

#: The type that S3 gives an object uploaded without one; _DEFAULTS adds other stores' defaults.
DEFAULT = "binary/octet-stream"
_DEFAULTS = (None, "", DEFAULT, "application/octet-stream")


def by_name(key: bytes) -> str | None:
    """Return the content type by the key's extension, or None."""
    return mimetypes.guess_type(key.decode("utf-8", "replace"), strict=False)[0]


def after_rename(content_type: str | None, old: bytes, new: bytes) -> str | None:
    """Return the content type after a rename from `old` to `new`."""
    before, after = by_name(old), by_name(new)
    if content_type not in (before, *_DEFAULTS):
        return content_type
    if after is None and content_type not in _DEFAULTS:
        return DEFAULT
    return after or content_type
