"""Pure: read XML from a server that is not trusted.

Expat's own handlers, because a listing page is on the path of every `ls`: ElementTree needs
nearly twice the time. Limits on size and depth, no document types, no entities: neither
entity bombs nor external files, whatever version of expat is below.
"""

from collections.abc import Callable
from typing import NoReturn
from xml.parsers import expat

from mountpoint.errors import BadAnswer

#: The deepest element S3 sends is ListBucketResult/Contents/RestoreStatus/RestoreExpiryDate.
XML_MAX_DEPTH = 8


def _refuse(*_: object) -> NoReturn:
    raise BadAnswer("the XML has a document type or entities, which S3 never sends")


def read_xml(body: bytes, max_bytes: int, on_end: Callable[[int, str, list[str]], None]) -> str:
    """Read `body`, calling `on_end(depth, name, texts)` as each element ends; return the root.

    The root has depth 0. `texts` is what stood before the end tag, in pieces, since the last
    tag; the callback may keep a joined copy, never the list.
    """
    if len(body) > max_bytes:
        raise BadAnswer(f"the XML has {len(body)} bytes, more than {max_bytes}")
    root = ""
    depth = -1
    texts: list[str] = []

    def start(name: str, _attributes: object) -> None:
        nonlocal depth, root
        depth += 1
        if depth >= XML_MAX_DEPTH:
            raise BadAnswer(f"the XML is nested deeper than {XML_MAX_DEPTH}")
        if depth == 0:
            root = name
        texts.clear()

    def end(name: str) -> None:
        nonlocal depth
        on_end(depth, name, texts)
        depth -= 1
        texts.clear()

    # The encoding is S3's, whatever the declaration says: other codecs are only attack surface.
    parser = expat.ParserCreate("UTF-8")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = texts.append
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    parser.ExternalEntityRefHandler = _refuse
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise BadAnswer(f"malformed XML: {error}") from None
    return root
