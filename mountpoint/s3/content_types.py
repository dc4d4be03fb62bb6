"""Pure: which content type an object has by its name, and by another one after a rename.

Only a type that a name has given, or a store where nobody said one, follows the name. Any other was
chosen by someone, and stays.
"""

import mimetypes

#: What S3 says of an object that was uploaded without a type, and what other stores say.
DEFAULT = "binary/octet-stream"
_DEFAULTS = (None, "", DEFAULT, "application/octet-stream")


def by_name(key: bytes) -> str | None:
    """Return the content type by the ending of a key's name, or None."""
    return mimetypes.guess_type(key.decode("utf-8", "replace"), strict=False)[0]


def after_rename(content_type: str | None, old: bytes, new: bytes) -> str | None:
    """Return the content type under its new key of an object that has this one under its old."""
    before, after = by_name(old), by_name(new)
    if content_type not in (before, *_DEFAULTS):
        return content_type
    if after is None and content_type not in _DEFAULTS:
        return DEFAULT
    return after or content_type
