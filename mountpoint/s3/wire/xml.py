"""Pure: parse XML from a server that is not trusted.

It uses expat's handlers directly, because every `ls` parses a listing page: ElementTree takes
nearly twice the time. Size and depth are limited; document types and entities are rejected. So
entity bombs and external files do no harm with any version of expat.
"""

from collections.abc import Callable
from typing import NoReturn
from xml.parsers import expat

from mountpoint.errors import BadAnswer

#: The deepest element that S3 sends is ListBucketResult/Contents/RestoreStatus/RestoreExpiryDate.
XML_MAX_DEPTH = 8


def _refuse(*_: object) -> NoReturn:
    raise BadAnswer("the XML has a document type or entities, but S3 never sends them")


def read_xml(body: bytes, max_bytes: int, on_end: Callable[[int, str, list[str]], None]) -> str:
    """Parse `body` and call `on_end(depth, name, texts)` at each end tag; return the root's name.

    The root has depth 0. `texts` holds the text since the previous tag, in pieces; the callback
    may join and keep it, but must not keep the list. Raises BadAnswer.
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

    # S3 sends UTF-8, whatever the declaration says; other codecs would only add attack surface.
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
