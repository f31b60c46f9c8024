"""What the bytes of a PNG say before any decoder sees them.

A decoder is given a file made anew of the chunks that its pixels depend on, and of those that may say how it lies.
Nothing else that a PNG may hold, however large, damaged or wrongly summed, can then decide whether there is a picture.
The layout is that of the PNG specification (third edition), sections 5 and 11.
"""

import struct
import zlib
from collections.abc import Iterator

from seedlings_spark.errors import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_HEADER_LENGTH = 13
# A real file of 64 MB in blocks of 8 kB has eight thousand. Looking at a million takes a second.
_MAX_CHUNKS = 1_000_000
# Text that may say how a picture lies: as Adobe's programs and as ImageMagick write it.
_TELLING_KEYWORDS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_MAX_TEXT = 1_000_000  # bytes, inflated; Pillow refuses a file with more
_MAX_TEXTS = 4
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
# Bits a channel that each type of colour may have.
_DEPTHS = {
    _GREY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGBA: (8, 16),
}
# Up to so many blocks of pixels stay as they are.
_FEW_BLOCKS = 100


def essence(content: bytes) -> tuple[bytes, bool]:
    """Make a PNG of the parts of another that decide how it looks, after verifying their checksums.

    Where inflating happens to succeed, a flipped bit would else become a wrong picture: Pillow skips the checksums of
    pixel data.

    Args:
        content: A file that begins as a PNG does.

    Returns:
        The new file, and whether it is a plain one: of 8 bits a channel, without interlacing, palette and declared
        transparent colour.

    Raises:
        ImageError: It ends within a part that is needed, a checksum is wrong, there is no header or are no pixels.
    """
    if not content.startswith(SIGNATURE):
        raise ImageError(
            "corrupt", "the signature is not that of a PNG: line ends were changed, as in a text"
        )
    header = b""
    before: list[bytes] = []  # whole chunks in front of the pixels
    pixels: list[tuple[int, int]] = []
    num_texts = 0
    for number, (kind, start, end) in enumerate(chunks(content)):
        if number > _MAX_CHUNKS:
            raise ImageError("too_large", f"the picture is in more than {_MAX_CHUNKS:,} parts")
        if not header:
            header = _header(content, kind, start, end)
        elif kind == b"IDAT":
            _check(content, kind, start, end)
            pixels.append((start, end))
        elif kind == b"IEND":
            break
        elif kind in (b"PLTE", b"tRNS"):
            # A palette is elsewhere a suggestion for screens of few colours; behind the pixels a colour means nothing.
            if header[9] == _PALETTE if kind == b"PLTE" else not pixels:
                _check(content, kind, start, end)
                before.append(content[start - 8 : end + 4])
        elif kind == b"eXIf":
            if _is_right(content, start, end):
                before.append(content[start - 8 : end + 4])
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            if num_texts < _MAX_TEXTS and _is_right(content, start, end) and _tells(kind, content[start:end]):
                num_texts += 1
                before.append(content[start - 8 : end + 4])
        elif kind[:1].isupper():  # a chunk that nobody may skip
            _check(content, kind, start, end)
            raise ImageError("unsupported_format", f"a PNG with the unknown critical chunk {kind!r:.20}")
    if not pixels:
        if has_end(content):
            raise ImageError("corrupt", "a PNG without pixel data (IDAT)")
        raise ImageError("truncated", "the file ends before its pixel data (IDAT)")
    made = b"".join(
        (SIGNATURE, chunk(b"IHDR", header), *before, *_blocks(content, pixels), chunk(b"IEND", b""))
    )
    depth, colour, _, _, interlace = header[8:]
    is_plain = (
        (depth, interlace) == (8, 0)
        and colour in (_GREY, _RGB, _RGBA)
        and not any(each[4:8] == b"tRNS" for each in before)
    )
    return made, is_plain


def chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the (kind, start, end) of each chunk's data up to IEND's; the last may end beyond the file."""
    at, kind = len(SIGNATURE), b""
    while at + 8 <= len(content) and kind != b"IEND":
        kind = content[at + 4 : at + 8]
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        yield kind, at + 8, end
        at = end + 4


def has_end(content: bytes) -> bool:
    """Tell whether a file has the chunk that ends a PNG."""
    return any(kind == b"IEND" and end <= len(content) for kind, _, end in chunks(content))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pixel_data(content: bytes) -> bytes:
    """The zlib stream of a PNG's pixels."""
    parts = [content[start:end] for kind, start, end in chunks(content) if kind == b"IDAT"]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def stored(content: bytes, rows: bytes, compressed: bytes) -> bytes:
    """A PNG whose pixels are not compressed.

    Args:
        content: The same as it was: its header is kept.
        rows: What its pixel data are, inflated.
        compressed: Those, at whose end their checksum stands.
    """
    parts = stored_stream(rows, compressed[-4:])
    length, sum_ = sum(map(len, parts)), zlib.crc32(b"IDAT")
    for part in parts:
        sum_ = zlib.crc32(part, sum_)
    start = len(SIGNATURE) + 12 + _HEADER_LENGTH
    before, after = struct.pack(">I", length) + b"IDAT", struct.pack(">I", sum_)
    return b"".join((content[:start], before, *parts, after, chunk(b"IEND", b"")))


def stored_stream(data: bytes, checksum: bytes) -> list[bytes | memoryview]:
    """The parts of a zlib stream of stored blocks (RFC 1950; RFC 1951, section 3.2.4).

    Args:
        data: What it holds.
        checksum: Adler-32 of that.
    """
    most, view = 0xFFFF, memoryview(data)
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for start in range(0, len(data), most):
        block = view[start : start + most]
        last = start + most >= len(data)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ most), block]
    parts.append(checksum)
    return parts


def _header(content: bytes, kind: bytes, start: int, end: int) -> bytes:
    """The data of the first chunk, which has to be a header of a picture that can be."""
    if kind != b"IHDR" or end - start != _HEADER_LENGTH:
        raise ImageError("corrupt", "a PNG without a header (IHDR) of 13 bytes at its beginning")
    _check(content, kind, start, end)
    header = content[start:end]
    width, height = struct.unpack_from(">II", header)
    if not width or not height or header[8] not in _DEPTHS.get(header[9], ()):
        what = f"{height} x {width} pixels, of {header[8]} bits and the type of colour {header[9]}"
        raise ImageError("corrupt", f"a PNG of {what}")
    if header[10] or header[11] or header[12] > 1:
        raise ImageError("corrupt", "a PNG whose compression, filters or interlacing are none that there are")
    return header


def _blocks(content: bytes, pixels: list[tuple[int, int]]) -> list[bytes]:
    """Pixel data as chunks, not so many that a decoder that reads them one by one would take long."""
    view = memoryview(content)
    if len(pixels) > _FEW_BLOCKS or pixels[-1][1] + 4 > len(content):  # or of the last the checksum is cut
        return [chunk(b"IDAT", b"".join(view[start:end] for start, end in pixels))]
    return [view[start - 8 : end + 4] for start, end in pixels]  # type: ignore[misc]


def _check(content: bytes, kind: bytes, start: int, end: int) -> None:
    """Refuse a chunk that is cut or whose checksum is wrong."""
    name = kind.decode("ascii", "replace")
    if end > len(content):
        raise ImageError(
            "truncated", f"the file ends {end - len(content):,} bytes before the end of a chunk {name}"
        )
    if end + 4 <= len(content) and not _is_right(content, start, end):
        what = "pixel data" if kind == b"IDAT" else "chunk"
        raise ImageError("corrupt", f"the checksum of the {what} ({name}) is wrong")


def _is_right(content: bytes, start: int, end: int) -> bool:
    stored = int.from_bytes(content[end : end + 4], "big")
    return end + 4 <= len(content) and zlib.crc32(memoryview(content)[start - 4 : end]) == stored


def _tells(kind: bytes, data: bytes) -> bool:
    """Tell whether a chunk of text is one that may say how a picture lies, and can be read."""
    keyword, _, rest = data.partition(b"\0")
    if keyword not in _TELLING_KEYWORDS:
        return False
    if kind == b"iTXt":
        is_deflated, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        is_deflated, rest = kind == b"zTXt", rest[1:] if kind == b"zTXt" else rest
    if is_deflated:
        inflater = zlib.decompressobj()
        try:
            rest = inflater.decompress(rest, _MAX_TEXT)
        except zlib.error:
            return False
        if not inflater.eof:
            return False
    return len(rest) < _MAX_TEXT
