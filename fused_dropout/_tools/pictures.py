"""PNG files that carry the digest of the figures they were drawn from."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEYWORD = "Source"  # of the text chunk with the digest, one of those that the PNG standard names


def png_of(figure: Figure, source: bytes, *, dpi: int = 100) -> bytes:
    """The figure as the content of a PNG file; `source`: the content of the JSON file it shows."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={_KEYWORD: digest(source)})
    return content.getvalue()


def digest(source: bytes) -> str:
    """What a picture of this JSON file carries."""
    return hashlib.sha256(source).hexdigest()


def digest_in(png: bytes) -> str | None:
    """The digest that a PNG file carries, None if it has none.

    Raises:
        ValueError: not a PNG file.
    """
    if not png.startswith(_SIGNATURE):
        raise ValueError("not a PNG file: its first 8 bytes are not PNG's")
    keyword = _KEYWORD.encode() + b"\0"
    found = (body for kind, body in _chunks(png) if kind == b"tEXt" and body.startswith(keyword))
    body = next(found, None)
    return None if body is None else body[len(keyword) :].decode("latin-1")


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of every chunk of a PNG file."""
    place = len(_SIGNATURE)
    while place + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        yield kind, png[place + 8 : place + 8 + length]
        place += 12 + length
